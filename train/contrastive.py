"""`python -m train.contrastive --out DIR`: a tiny CLIP, from drawn objects and their phrases.

Nobody needs it who has CLIP's released weights. It lets the whole of text prompting be trained and
tested where nothing can be fetched: the image tower sees crops of single objects, as text prompts
are trained on (`sam_jax.data.crops`), the text tower phrases of their colour, texture and shape
(`sam_jax.data.descriptions`).

Seen on two CPU cores, beside other work: 17 minutes for the first stage, after which the right
image is the likeliest of 128 for 97% of the phrases trained on; 5 for 1,500 steps of the second.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from sam_jax.checkpoint.clip import Clip, save_clip
from sam_jax.compiling import compile_ahead
from sam_jax.data.crops import crop_object
from sam_jax.data.described import DescribedScenes
from sam_jax.data.descriptions import (
    VOCABULARY,
    Attributes,
    facts,
    phrase,
    read_phrase,
    unique_phrase,
    worded,
)
from sam_jax.evaluation.described import looks
from sam_jax.inference.text import TextTower, crop_embedder, with_tokenizer, word_tokenizer
from sam_jax.models.clip import CLIP_TINY, ClipConfig, ClipModel, clip_normalise, init_clip
from sam_jax.ops.rle import decode
from train.__main__ import keep_memory

CONTEXT = 24
"""Tokens: the longest phrase has about half as many."""


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """What `python -m train.contrastive` takes."""

    out: str
    """Folder that clip.safetensors goes to."""
    steps: int = 1200
    batch_size: int = 128
    """Objects, and as many phrases, in a step."""
    text_steps: int = 1000
    """Steps after those, in which the text tower alone is trained, towards the crops' embeddings
    as they then are. CLIP's loss alone leaves the two modalities in places of their own, and a
    model that is trained on the one is then asked by the other."""
    alignment: float = 5.0
    """In those, the weight of the squared distance between a phrase and its crop."""
    scenes: int = 2500
    """Different ones, drawn once; others than those that a model is tested on."""
    lr: float = 1e-3
    tested: int = 100
    """Scenes of another seed, whose objects the result has to pick by their phrases."""
    seed: int = 100


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is trained on: every object of the scenes."""

    crops: np.ndarray
    """uint8 [N, V, S, S, 3]."""
    inside: np.ndarray
    """bool [N, V, g, g]."""
    attributes: list[Attributes]
    scene: np.ndarray
    """int [N]: which scene each is in, not falling."""


def draw_objects(count: int, seed: int, clip: ClipConfig, variants: int = 4) -> Objects:
    """Draws `count` scenes and cuts `variants` crops out of them around every object."""
    scenes = DescribedScenes(count, seed=seed, places=False)

    def of(index: int) -> tuple[list, list, list]:
        record, rng = scenes[index], np.random.default_rng([seed, index])
        pairs = [
            [
                crop_object(record["image"], decode(rle), clip.image_size, clip.grid, rng)
                for _ in range(variants)
            ]
            for rle in record["rles"]
        ]
        crops = [np.stack([crop for crop, _ in one]) for one in pairs]
        inside = [np.stack([patches for _, patches in one]) for one in pairs]
        return crops, inside, [looks(one) for one in record["attributes"]]

    with ThreadPoolExecutor(2) as threads:
        drawn = list(
            tqdm(threads.map(of, range(len(scenes))), "drawing", len(scenes), disable=None)
        )
    crops, inside, attributes = (sum((one[k] for one in drawn), []) for k in range(3))
    scene = np.repeat(np.arange(count), [len(one[2]) for one in drawn])
    return Objects(np.stack(crops), np.stack(inside), attributes, scene)


def batches(
    objects: Objects, size: int, tokenise, rng: np.random.Generator, full: float = 0.0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches: crops, the patches inside, tokens, and which phrase is true of which.

    A phrase may be true of several objects; all of them are then right. The share `full` of the
    phrases tells all that a crop shows.
    """
    while True:
        chosen = rng.integers(len(objects.attributes), size=size)
        variant = rng.integers(objects.crops.shape[1], size=size)
        attributes = [objects.attributes[i] for i in chosen]
        told = [worded if full and rng.random() < full else phrase for _ in attributes]
        phrases = [tell(one, rng) for tell, one in zip(told, attributes, strict=True)]
        known = [facts(one) for one in attributes]
        asked = [facts(read_phrase(words)) for words in phrases]
        true = np.array([[some <= every for every in known] for some in asked])
        yield {
            "crops": objects.crops[chosen, variant],
            "inside": objects.inside[chosen, variant],
            "ids": tokenise(phrases),
            "true": true,
        }


def contrastive_loss(similarity: jax.Array, true: jax.Array) -> tuple[jax.Array, jax.Array]:
    """CLIP's loss where one phrase may be true of several images.

    Args:
      similarity: float32 [N, N] (image, text), scaled.
      true: bool [N, N] (text, image).

    Returns:
      The mean over both directions of -log of the share that the softmax gives to what is right
      (towards texts, of each image's true phrases by equal parts), and how often the likeliest
      image is one that the phrase is true of.
    """
    by_image = jax.nn.log_softmax(similarity, 0).T  # [text, image]
    right = jax.nn.logsumexp(jnp.where(true, by_image, -jnp.inf), 1)
    by_text = jax.nn.log_softmax(similarity, 1)  # [image, text]
    share = true.T / true.sum(0)[:, None]
    loss = -(right.mean() + (share * by_text).sum(1).mean()) / 2
    hit = jnp.take_along_axis(true, by_image.argmax(1)[:, None], 1).mean()
    return loss, hit


def make_step(clip: ClipConfig, optimizer: optax.GradientTransformation, alignment: float | None):
    """(params, opt_state, batch) -> (params, opt_state, loss, hits), jitted.

    With `alignment` the batch's "crops" are their embeddings and the text tower alone is trained.
    """
    model = ClipModel(clip)

    def loss_of(params, batch):
        text = model.apply(params, batch["ids"], None, True, method="encode_text")
        scale = jnp.exp(params["params"]["logit_scale"]["log"])
        if alignment is not None:
            image = batch["crops"]
            loss, hit = contrastive_loss(scale * image @ text.T, batch["true"])
            return loss + alignment * ((image - text) ** 2).sum(-1).mean(), hit
        images = clip_normalise(batch["crops"])
        image = model.apply(params, images, batch["inside"], True, method="encode_image")
        return contrastive_loss(scale * image @ text.T, batch["true"])

    def step(params, opt_state, batch):
        (loss, hit), grads = jax.value_and_grad(loss_of, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        new = optax.apply_updates(params, updates)
        if alignment is not None:  # the optimizer's weight decay would change the others
            new = {"params": params["params"] | {"text": new["params"]["text"]}}
        return new, opt_state, loss, hit

    return jax.jit(step, donate_argnums=(0, 1))


def fit(
    config: ContrastiveConfig,
    clip: ClipConfig,
    params: dict,
    data: Iterator[dict[str, np.ndarray]],
    steps: int,
    alignment: float | None = None,
) -> dict:
    """Params after `steps` steps of `make_step`, in which the rate falls to nothing."""
    rate = optax.warmup_cosine_decay_schedule(0.0, config.lr, min(100, steps // 10), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.1)
    )
    opt_state, batch = optimizer.init(params), next(data)
    step = compile_ahead(make_step(clip, optimizer, alignment), params, opt_state, batch)
    what, every = "training" if alignment is None else "training text", max(100, steps // 10)
    recent: list[tuple[float, float]] = []
    for done in tqdm(range(1, steps + 1), what, disable=None):
        params, opt_state, loss, hit = step(params, opt_state, batch)
        recent.append((float(loss), float(hit)))
        batch = next(data)
        if done % every == 0 or done == steps:
            loss, hit = np.mean(recent, 0)
            print(f"{what}: step {done} of {steps}: loss {loss:.3f}, right image {hit:.3f}")
            recent = []
    return params


def embedded(objects: Objects, clip: Clip) -> Objects:
    """The objects with their crops' embeddings, float32 [N, V, T], in the crops' place."""
    crops = zip(np.concatenate(objects.crops), np.concatenate(objects.inside), strict=True)
    rows = crop_embedder(clip)(list(crops))
    return dataclasses.replace(objects, crops=rows.reshape(*objects.crops.shape[:2], -1))


def pick(clip: Clip, objects: Objects, seed: int) -> dict[str, float]:
    """How often a phrase's embedding is nearest to the object, of its scene, that it singles out.

    Returns:
      The share for "shortest" and for "full" phrases, the cosine of the full ones to their crops
      ("alike"), the number of phrases of each kind ("objects").
    """
    crops = list(zip(objects.crops[:, 0], objects.inside[:, 0], strict=True))
    image, rng = crop_embedder(clip)(crops), np.random.default_rng(seed)
    right: dict[str, list[float]] = {"shortest": [], "full": [], "alike": []}
    tower = TextTower(clip)
    for number in range(objects.scene[-1] + 1):
        own = np.flatnonzero(objects.scene == number)
        scene = [objects.attributes[i] for i in own]
        for k, query in enumerate(scene):
            short = unique_phrase(scene, k, rng, shortest=1.0)
            if short is None:
                continue
            text = tower.embed([short, worded(query, rng)])
            near = image[own] @ text.T
            right["shortest"].append(near[:, 0].argmax() == k)
            right["full"].append(near[:, 1].argmax() == k)
            right["alike"].append(near[k, 1])
    return {key: float(np.mean(values)) for key, values in right.items()} | {
        "objects": len(right["full"])
    }


def run(config: ContrastiveConfig) -> int:
    """Trains and writes OUT/clip.safetensors."""
    for name in ("steps", "batch_size", "scenes", "tested"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if config.text_steps < 0:
        raise ValueError(f"text_steps: expected 0 or more, got {config.text_steps}")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer_json = word_tokenizer(VOCABULARY, CONTEXT)
    clip = with_tokenizer(CLIP_TINY.replace(context=CONTEXT), tokenizer_json)
    params = init_clip(clip, jax.random.key(config.seed))
    tokenise = TextTower(Clip(clip, params, tokenizer_json)).tokenise
    objects = draw_objects(config.scenes, config.seed, clip)
    rng = np.random.default_rng(config.seed)
    params = fit(
        config, clip, params, batches(objects, config.batch_size, tokenise, rng), config.steps
    )
    if config.text_steps:
        objects = embedded(objects, Clip(clip, jax.device_get(params), tokenizer_json))
        data = batches(objects, config.batch_size, tokenise, rng, full=0.5)
        params = fit(config, clip, params, data, config.text_steps, config.alignment)
    params = jax.device_get(params)
    save_clip(out / "clip.safetensors", clip, params, tokenizer_json)
    print(f"wrote {out / 'clip.safetensors'}")
    new = draw_objects(config.tested, config.seed + 1, clip, variants=1)
    found = pick(Clip(clip, params, tokenizer_json), new, config.seed)
    print(
        f"of {found['objects']} objects of new scenes, the phrase that singles one out is nearest "
        f"to its crop: shortest {found['shortest']:.3f}, telling all {found['full']:.3f}; "
        f"cosine of the latter to their crops {found['alike']:.3f}"
    )
    return 0


def main() -> int:
    """The command: 0 at the end, 2 for wrong input, 130 when stopped."""
    try:
        return run(tyro.cli(ContrastiveConfig, prog="python -m train.contrastive"))
    except ValueError as error:
        print(f"train.contrastive: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    keep_memory("train.contrastive")
    sys.exit(main())
