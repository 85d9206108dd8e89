"""The released PyTorch code's side of the comparison.

    python -m tests.benchmarks.stages_released --stage encoder --model vit_b --dtype bfloat16

The released package has no training code: the step here is its three modules under autograd with
the losses of the paper, as plainly as PyTorch allows. On a GPU the encoder's attention is replaced
by PyTorch's own (`scaled_dot_product_attention`, the relative positions as a bias): the released
form would be no fair opponent there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import numpy as np

from tests.benchmarks.options import Options, masks_of, photo_of, points_of, stage_options
from tests.benchmarks.pair import serve

Prepared = tuple[Callable[[], object], dict]


def model(options: Options):
    """The released model with the weights that both sides have."""
    import torch

    import sam_jax
    from sam_jax.checkpoint.names import shapes, to_torch
    from tests.reference import build_reference
    from tests.weights import lively_tensors

    config = sam_jax.CONFIGS[options.model]
    reference = build_reference(config)
    if options.model == "tiny":
        tensors = to_torch(sam_jax.load("tiny").params)
    else:
        tensors = lively_tensors(shapes(config))
    reference.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=True)
    if options.device != "cpu":
        _use_sdpa()
    return reference.to(torch_device(options))


def torch_device(options: Options) -> str:
    """PyTorch's name of the device."""
    return "cpu" if options.device == "cpu" else "cuda"


def _use_sdpa() -> None:
    """Gives the released encoder PyTorch's fused attention, with a bias that is made beforehand."""
    import torch
    from segment_anything.modeling import image_encoder

    def forward(self, x):
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        square = q.reshape(b, self.num_heads, h, w, -1)
        by_row = image_encoder.get_rel_pos(h, h, self.rel_pos_h).to(q.dtype)
        by_column = image_encoder.get_rel_pos(w, w, self.rel_pos_w).to(q.dtype)
        bias = torch.einsum("bnhwc,hkc->bnhwk", square, by_row)[..., :, None]
        bias = bias + torch.einsum("bnhwc,wkc->bnhwk", square, by_column)[..., None, :]
        bias = bias.reshape(b, self.num_heads, h * w, h * w)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, -1))

    image_encoder.Attention.forward = forward


def precision(options: Options):
    """A context in which the model computes in the options' dtype."""
    import torch

    if options.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch_device(options), dtype=torch.bfloat16)


def finished(options: Options, function: Callable) -> Callable:
    """`function` without gradients, in the wanted precision, waiting for a GPU."""
    import torch

    def run():
        with torch.inference_mode(), precision(options):
            result = function()
        if options.device != "cpu":
            torch.cuda.synchronize()
        return result

    return run


def _image(options: Options, reference):
    import torch

    side = reference.image_encoder.img_size
    photo = torch.tensor(photo_of((side, side))).permute(2, 0, 1)[None].float()
    photo = photo.repeat(options.batch, 1, 1, 1).to(torch_device(options))
    return reference.preprocess(photo), side


def encoder(options: Options) -> Prepared:
    """Normalised photos to embeddings, both on the device."""
    import torch

    reference = model(options)
    image, _ = _image(options, reference)
    forward = reference.image_encoder
    if options.compiled:
        forward = torch.compile(forward)
    return finished(options, lambda: forward(image)), {}


def _embedded(options: Options):
    import torch

    reference = model(options)
    image, side = _image(options, reference)
    with torch.inference_mode():
        return reference, reference.image_encoder(image), side


def _decode(reference, features, points, labels, multimask: bool, boxes=None, masks=None):
    sparse, dense = reference.prompt_encoder(
        points=None if points is None else (points, labels), boxes=boxes, masks=masks
    )
    return reference.mask_decoder(
        image_embeddings=features,
        image_pe=reference.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )


def prompt(options: Options) -> Prepared:
    """One point, five points or a box, to its masks' logits on the host."""
    import torch

    reference, features, side = _embedded(options)
    points, labels = points_of(options.prompt, side)
    points, labels = (torch.tensor(x).to(features.device)[None] for x in (points, labels))
    decode = torch.compile(_decode) if options.compiled else _decode

    def run():
        if options.prompt == "box":
            return decode(reference, features, None, None, False, points.reshape(1, 4))
        # The released encoder appends the closing token itself.
        several = options.prompt != "point"
        return decode(reference, features, points[:, :-1], labels[:, :-1], not several)

    def to_host():
        masks, scores = run()
        return masks.float().cpu().numpy(), scores.float().cpu().numpy()

    return finished(options, to_host), {}


def prompts(options: Options) -> Prepared:
    """The grid's points, three masks each, to their logits on the device."""
    import torch

    reference, features, side = _embedded(options)
    points = np.random.default_rng(0).uniform(0, side, (options.count, 1, 2)).astype(np.float32)
    points = torch.tensor(points).to(features.device)
    labels = torch.ones(points.shape[:2], dtype=torch.int32, device=features.device)
    decode = torch.compile(_decode) if options.compiled else _decode
    return finished(options, lambda: decode(reference, features, points, labels, True)), {}


def generator(options: Options) -> Prepared:
    """Automatic masks of a photo."""
    from tests.reference import stand_in_torchvision

    stand_in_torchvision()
    from segment_anything import SamAutomaticMaskGenerator

    made = SamAutomaticMaskGenerator(
        model(options), output_mode="uncompressed_rle", **options.limits
    )
    photo, masks = photo_of(options.photo_wh), []

    def run():
        masks[:] = made.generate(photo)

    return finished(options, run), {}


def train(options: Options) -> Prepared:
    """An optimiser step on one photo with a few masks."""
    import torch

    reference = model(options).train()
    image, side = _image(options, reference)
    masks, _ = masks_of(side, options.masks)
    target = torch.tensor(masks).float().to(image.device)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=8e-4, weight_decay=0.1)
    encode = torch.compile(reference.image_encoder) if options.compiled else reference.image_encoder

    def first_points():
        places = [torch.nonzero(m)[torch.randint(int(m.sum()), (1,))[0]] for m in target]
        return torch.stack(places).flip(-1).float()[:, None] * 4

    def next_points(logits):
        error = ((logits > 0) != (target > 0.5)).flatten(1).float() + 1e-9
        place = torch.multinomial(error, 1)[:, 0]
        label = target.flatten(1).gather(1, place[:, None])
        grid = target.shape[-1]
        return torch.stack([place % grid, place // grid], -1).float()[:, None] * 4, label

    def loss_of(logits, scores):
        p, goal = logits.float().sigmoid(), target[:, None].expand_as(logits)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), goal, reduction="none"
        )
        wrong = p * (1 - goal) + (1 - p) * goal
        weight = 0.25 * goal + 0.75 * (1 - goal)
        focal = (weight * entropy * wrong**2).mean((2, 3))
        dice = 1 - (2 * (p * goal).sum((2, 3)) + 1) / ((p + goal).sum((2, 3)) + 1)
        masks_loss, best = (20 * focal + dice).min(1)
        with torch.no_grad():
            inside, true = logits > 0, goal > 0.5
            iou = (inside & true).sum((2, 3)) / (inside | true).sum((2, 3)).clamp(min=1)
        error = (scores.float() - iou) ** 2
        return (masks_loss + error.gather(1, best[:, None])[:, 0]).mean()

    def step():
        with precision(options):
            features = encode(image)
            points, labels = first_points(), torch.ones(options.masks, 1, device=image.device)
            total, last = 0.0, None
            for round_ in range(options.rounds):
                first = round_ == 0
                mask = None if first else last[:, None]
                logits, scores = _decode(reference, features, points, labels, first, masks=mask)
                total = total + loss_of(logits, scores)
                chosen = scores.argmax(1)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
                last = logits.float().gather(1, chosen)[:, 0]
                if round_ + 1 < options.rounds:
                    point, label = next_points(last.detach())
                    points = torch.cat([points, point], 1)
                    labels = torch.cat([labels, label], 1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return step, {}


STAGES = {stage.__name__: stage for stage in (encoder, prompt, prompts, generator, train)}


def main() -> None:
    """Serves one stage."""
    options = stage_options(sys.argv[1:])

    def prepare():
        import torch

        run, facts = STAGES[options.stage](options)
        return run, facts | {"torch": torch.__version__}

    def device_gb() -> float:
        import torch

        return torch.cuda.max_memory_allocated() / 1e9

    serve("tests.benchmarks.stages_released", prepare, *([device_gb] * (options.device != "cpu")))


if __name__ == "__main__":
    main()
