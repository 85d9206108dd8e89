"""Configs that contradict themselves, and those that unlearn something."""

import dataclasses

import jax
import pytest

from sam_jax.checkpoint.load import save
from sam_jax.models.sam import init
from sam_jax.training.config import (
    LoraConfig,
    LossConfig,
    OptimConfig,
    PromptConfig,
    Stage,
    TextConfig,
)
from tests.small import CONFIG as SMALL_FILE
from tests.small import small_sam
from tests.training.test_step import CONFIG, SMALL
from train.advice import check, warnings
from train.start import starting_point

CACHED = dataclasses.replace(
    CONFIG,
    optim=OptimConfig(frozen=("image_encoder/*",)),
    cache_embeddings=True,
    augment=False,
    photos=(("own", 1.0),),
)


@pytest.fixture(scope="module")
def params():
    return jax.eval_shape(lambda key: init(SMALL, key), jax.random.key(0))["params"]


def test_what_fits_together_is_accepted_in_silence(params):
    for config in (CONFIG, CACHED):
        check(config, params)
        assert warnings(config, params) == []


def test_processes_do_not_copy_kept_embeddings(params):
    check(dataclasses.replace(CONFIG, workers=2), params)
    with pytest.raises(ValueError, match="workers: each process .* cache_embeddings .*workers 0"):
        check(dataclasses.replace(CACHED, workers=2), params)
    text = dataclasses.replace(CONFIG, workers=2, text=TextConfig(clip="x"))
    with pytest.raises(ValueError, match="workers: each process .* text.clip .*workers 0"):
        check(text, params)
    with pytest.raises(ValueError, match="workers: expected 0 or a number of processes, got -1"):
        check(dataclasses.replace(CONFIG, workers=-1), params)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"optim": OptimConfig(frozen=("image_encoder/block_0/*",))}, "frozen 'image_encoder/*'"),
        ({"augment": True}, "--no-augment"),
        ({"cut_paste": 0.5}, "--cut-paste 0"),
        ({"scenes": 0.5}, "--scenes 0"),
        ({"lora": LoraConfig(rank=2)}, "--lora.rank 0, or --lora.on 'mask_decoder/"),
        ({"stages": (Stage(9, 32, 2, 2, scale_range=(0.5, 1.0)),)}, "scale_range=(1.0, 1.0)"),
        ({"loss": LossConfig(grouping_weight=0.1)}, "--loss.grouping-weight 0"),
        ({"photos": ()}, "--photos and --data-root"),
    ],
)
def test_what_contradicts_cached_embeddings_says_what_to_change(params, changes, hint):
    with pytest.raises(ValueError, match="cache_embeddings: every picture is encoded once") as e:
        check(dataclasses.replace(CACHED, **changes), params)
    assert hint in str(e.value) and str(e.value).endswith("--no-cache-embeddings)")
    assert str(e.value).count(";") == 1  # one problem, one way out


def test_adapters_on_the_decoder_go_with_cached_embeddings(params):
    lora = LoraConfig(rank=2, on=("mask_decoder/transformer/*_proj/kernel",))
    frozen = OptimConfig(frozen=("image_encoder/*", "mask_decoder/*"))
    check(dataclasses.replace(CACHED, lora=lora, optim=frozen), params)


def test_repeated_masks_are_not_told_from_themselves(params):
    matched = LossConfig(matching_weight=1.0)
    text = dataclasses.replace(CONFIG, text=TextConfig(clip="clip"), loss=matched)
    check(text, params)
    with pytest.raises(ValueError, match="repeat_masks: .*--no-repeat-masks"):
        check(dataclasses.replace(text, repeat_masks=True), params)
    check(dataclasses.replace(text, repeat_masks=True, loss=LossConfig()), params)


def test_a_share_of_fresh_weights_is_not_kept(params):
    for share, begun, fits in ((0.3, "tiny", True), (0.3, "", False), (1.0, "tiny", False)):
        config = dataclasses.replace(
            CONFIG, init_from=begun, optim=dataclasses.replace(CONFIG.optim, start_share=share)
        )
        if fits:
            check(config, params)
            continue
        with pytest.raises(ValueError, match="optim.start_share"):
            check(config, params)


def test_nothing_to_train(params):
    frozen = OptimConfig(frozen=("*",))
    with pytest.raises(ValueError, match="freeze every parameter"):
        check(dataclasses.replace(CONFIG, optim=frozen), params)
    check(dataclasses.replace(CONFIG, optim=frozen, lora=LoraConfig(rank=2)), params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": PromptConfig(box_probability=1.0)}, "automatic generator and single clicks"),
        ({"prompts": PromptConfig(box_probability=0.0)}, "boxes are never trained"),
        ({"stages": (Stage(9, 32, 2, 2, 0, 0),)}, "second clicks will drift"),
        ({"optim": OptimConfig(frozen=("mask_decoder/iou_head/*",))}, "predicted IoU is not"),
        ({"loss": LossConfig(iou_weight=0.0)}, "predicted IoU is not trained"),
        ({"lora": LoraConfig(rank=2)}, "freeze them with optim.frozen"),
        ({"cut_outs": (("stickers", 1.0),)}, "nothing is pasted without composites"),
        ({"augment": False, "stretch": 0.1}, "stretch, blur: do nothing without augment"),
        (
            {"blur": 0.1, "text": TextConfig(clip="x", share=0.5)},
            "blur: does nothing, crops are encoded",
        ),
    ],
)
def test_what_will_be_unlearned_is_said(params, changes, words):
    (said,) = warnings(dataclasses.replace(CONFIG, **changes), params)
    assert words in said


def test_the_checkpoint_decides_the_sizes(tmp_path):
    begun = tmp_path / "begun.safetensors"
    save(small_sam(SMALL_FILE.replace(draw_boxes=True)), begun)
    model = SMALL.replace(dtype="bfloat16", drop_path=0.25, remat=True)
    config = dataclasses.replace(
        CONFIG, model=model, init_from=str(begun), stages=(Stage(9, 0, 2, 2), Stage(9, 256, 2, 2))
    )
    started, variables, _ = starting_point(config)
    assert started.model.encoder_width == 32 and started.model.window_size == 3
    assert (started.model.dtype, started.model.drop_path, started.model.remat) == (
        "bfloat16",
        0.25,
        True,
    )
    assert [stage.image_size for stage in started.stages] == [64, 256]
    assert started.model.draw_boxes  # as the model of the file does
    assert variables["params"]["image_encoder"]["pos_embed"].shape == (1, 4, 4, 32)
    with pytest.raises(ValueError, match="structured_start: is about fresh weights"):
        starting_point(dataclasses.replace(config, structured_start=True))
    with pytest.raises(ValueError, match="stage 1 has an image_size of 250; .* patch size 16"):
        starting_point(dataclasses.replace(config, stages=(Stage(9, 250, 2, 2),)))
