"""Against PyTorch, the released classes and Hugging Face's: files both ways, and answers."""

import warnings

import jax
import numpy as np
import pytest

from sam_jax.checkpoint.load import load, save
from sam_jax.checkpoint.names import from_torch, to_torch
from sam_jax.checkpoint.pth import read_pth, write_pth
from sam_jax.models.prompt_encoder import Prompts
from sam_jax.models.sam import SamModel
from tests.checkpoint.common import ODD, assert_same_bits, random_sam

pytestmark = [pytest.mark.torch, pytest.mark.optimised]

CONFIG = ODD.replace(encoder_depth=2, embed_dim=32, mask_channels=8, decoder_heads=8)


@pytest.fixture(scope="module")
def reference():
    from tests.reference import build_reference, lively

    return lively(build_reference(CONFIG), 1)


def answers(sam, images, points, labels):
    """Embedding, logits and IoU of this project's model."""
    model = SamModel(sam.config)
    embedding = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(sam.params, images)
    prompts = Prompts(points=points, labels=labels)
    decode = jax.jit(lambda v, z, p: model.apply(v, z, p, method="decode"))
    return [np.asarray(x) for x in (embedding, *decode(sam.params, embedding, prompts))]


def assert_close(got, want, tolerance=1e-4):
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def test_pytorch_opens_what_is_written_and_the_released_classes_take_it(reference, tmp_path):
    import torch

    from tests.reference import build_reference, state

    sam = random_sam(CONFIG)
    save(sam, tmp_path / "a.pth")
    tensors = torch.load(tmp_path / "a.pth", weights_only=True)
    model = build_reference(CONFIG)
    assert str(model.load_state_dict(tensors, strict=True)) == "<All keys matched successfully>"
    assert_same_bits(from_torch(state(model), CONFIG), sam.params)
    with torch.serialization.safe_globals([]):
        assert torch.load(tmp_path / "a.pth", weights_only=True, mmap=True).keys() == tensors.keys()


def test_what_pytorch_writes_is_read(reference, tmp_path):
    import torch

    from tests.reference import state

    torch.save(reference.state_dict(), tmp_path / "a.pth")
    back = read_pth(tmp_path / "a.pth")
    assert all(np.array_equal(back[k], v) for k, v in state(reference).items())
    loaded = load(tmp_path / "a.pth")
    assert loaded.config == CONFIG
    again = to_torch(loaded.params)
    assert all(np.array_equal(again[k], v) for k, v in back.items())
    torch.save(
        {
            "model": {f"module.{k}": v for k, v in reference.state_dict().items()},
            "epoch": 3,
            "lr": [0.1, None, True],
        },
        tmp_path / "b.pth",
    )
    assert_same_bits(load(tmp_path / "b.pth").params, loaded.params)


def test_views_kinds_of_number_and_parameters(tmp_path):
    import torch

    base = torch.arange(60, dtype=torch.float32).reshape(5, 12) / 7
    tensors = {
        "view": base[1:4:2, ::3],
        "transposed": base.t(),
        "row": base[2],
        "expanded": base[:1, :1],
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "permuted": base.reshape(5, 3, 4).permute(2, 0, 1),
        **{
            str(kind): base.to(kind)
            for kind in (
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.int64,
                torch.int32,
                torch.int16,
                torch.int8,
                torch.uint8,
                torch.bool,
            )
        },
    }
    for protocol in (2, 4, 5):
        torch.save(tensors, tmp_path / "a.pth", pickle_protocol=protocol)
        back = read_pth(tmp_path / "a.pth")
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert back[name].shape == tuple(tensor.shape), name
            want = tensor.detach().to(torch.float64).numpy()
            np.testing.assert_array_equal(back[name].astype(np.float64), want)
    write_pth(tmp_path / "b.pth", back)
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor.detach()), name


def test_pytorchs_old_format_and_torchscript_are_refused(tmp_path):
    import torch

    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="format of before 2020; save it anew"):
        read_pth(tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "b.pth"))
    with pytest.raises(ValueError, match="which is not allowed|no file of tensors needs"):
        read_pth(tmp_path / "b.pth")


def test_the_printed_lines_build_the_model_and_its_answers_agree(reference, tmp_path):
    import torch

    from convert.report import pytorch_lines
    from tests.reference import state

    write_pth(tmp_path / "a.pth", state(reference))
    scope = {}
    exec(pytorch_lines(CONFIG, tmp_path / "a.pth"), scope)
    sam = load(tmp_path / "a.pth")
    images = np.random.default_rng(0).standard_normal((1, 77, 77, 3), np.float32)
    xy = np.array([[[20.0, 30.0], [50.0, 11.0]]], np.float32)
    with torch.no_grad():
        embedding = scope["sam"].image_encoder(torch.from_numpy(images).permute(0, 3, 1, 2))
        sparse, dense = scope["sam"].prompt_encoder(
            (torch.from_numpy(xy), torch.tensor([[1, 0]])), None, None
        )
        logits, iou = scope["sam"].mask_decoder.predict_masks(
            embedding, scope["sam"].prompt_encoder.get_dense_pe(), sparse, dense
        )
    points = np.concatenate([xy, np.zeros((1, 1, 2), np.float32)], 1)[None]
    got = answers(sam, images, points, np.array([[[1, 0, -1]]], np.int32))
    assert_close(got[0][0], embedding[0].permute(1, 2, 0).numpy())
    assert_close(got[1][0, 0], logits[0].numpy())
    assert_close(got[2][0, 0], iou[0].numpy())
    assert min(float(logits.std()), float(embedding.std())) > 0.1


def test_hugging_face_opens_what_is_written_and_answers_alike(reference, tmp_path):
    import torch

    transformers = pytest.importorskip("transformers", reason="compares with Hugging Face's port")
    from tests.reference import state

    write_pth(tmp_path / "a.pth", state(reference))
    sam = load(tmp_path / "a.pth")
    save(sam, tmp_path / "hf", "hf")
    model, report = transformers.SamModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(
        report[kind]
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    )
    model.eval()
    images = np.random.default_rng(0).standard_normal((1, 77, 77, 3), np.float32)
    points = np.array([[[[20.0, 30.0], [50.0, 11.0]]]], np.float32)
    with torch.no_grad():
        embedding = model.get_image_embeddings(torch.from_numpy(images).permute(0, 3, 1, 2))
        out = model(
            image_embeddings=embedding,
            input_points=torch.from_numpy(points),
            input_labels=torch.tensor([[[1, 0]]]),
            multimask_output=True,
        )
    points = np.concatenate([points, np.zeros((1, 1, 1, 2), np.float32)], 2)
    got = answers(sam, images, points, np.array([[[1, 0, -1]]], np.int32))
    assert_close(got[0][0], embedding[0].permute(1, 2, 0).numpy())
    assert_close(got[1][0, 0, 1:], out.pred_masks[0, 0].numpy())
    assert_close(got[2][0, 0, 1:], out.iou_scores[0, 0].numpy())
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config == CONFIG
    assert_same_bits(again.params, sam.params)
