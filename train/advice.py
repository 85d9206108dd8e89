"""What in a config contradicts itself, and what it will quietly unlearn."""

from __future__ import annotations

from sam_jax.training.config import TrainConfig
from sam_jax.training.lora import adapted_paths
from sam_jax.training.optim import is_frozen, path_tree

ENCODER = "image_encoder/"
IOU_HEAD = "mask_decoder/iou_head/"


def check(config: TrainConfig, params: dict) -> None:
    """Refuses what cannot be meant.

    Args:
      config: the run's.
      params: the model's, without adapters; only their paths and shapes count.

    Raises:
      ValueError: nothing would be trained, a share of the start is to be kept where a run starts
        from nothing, embeddings are to be cached that training changes, or processes would each
        copy embeddings that are kept.
    """
    adapted = adapted_paths(params, config.lora) if config.lora.rank else []
    frozen = {path for path in _paths(params) if is_frozen(path, config.optim)}
    if not adapted and frozen == set(_paths(params)):
        raise ValueError(
            "optim.frozen: these patterns freeze every parameter, and there are no adapters to "
            "train; free some, or give --lora.rank 8"
        )
    share = config.optim.start_share
    if not 0 <= share < 1 or share and not config.init_from:
        raise ValueError(
            f"optim.start_share: expected 0, or with init_from a share below 1, got {share}"
        )
    _check_text(config)
    _check_workers(config)
    free = [path for path in _paths(params) if path not in frozen]
    _check_teacher(config, free, _encoder_is_still(config, params))
    if not config.cache_embeddings:
        return
    problems = []
    if not all(path in frozen for path in _paths(params) if path.startswith(ENCODER)):
        problems.append("the encoder is trained: --optim.frozen 'image_encoder/*'")
    if any(path.startswith(ENCODER) for path in adapted):
        problems.append(
            "adapters change the encoder: --lora.rank 0, or --lora.on "
            "'mask_decoder/transformer/*_proj/kernel'"
        )
    if config.augment:
        problems.append("pictures are mirrored and coloured anew each time: --no-augment")
    for name in ("cut_paste", "scenes"):
        if getattr(config, name):
            problems.append(f"{name} makes ever new pictures: --{name.replace('_', '-')} 0")
    if any(stage.scale_range != (1.0, 1.0) for stage in config.stages):
        problems.append("pictures are scaled at random: scale_range=(1.0, 1.0) in every stage")
    if config.loss.grouping_weight:
        problems.append("the grouping loss trains the encoder: --loss.grouping-weight 0")
    if (not config.photos or config.data_root == "none") and not config.described:
        problems.append("there are no pictures to encode: --photos and --data-root")
    if problems:
        raise ValueError(
            "cache_embeddings: every picture is encoded once, but "
            + "; ".join(problems)
            + "; or leave it out (--no-cache-embeddings)"
        )


def _check_workers(config: TrainConfig) -> None:
    if config.workers < 0:
        raise ValueError(f"workers: expected 0 or a number of processes, got {config.workers}")
    for name, kept in (
        ("cache_embeddings", config.cache_embeddings),
        ("text.clip", config.text.clip),
    ):
        if config.workers and kept:
            raise ValueError(
                f"workers: each process would hold its own copy of the embeddings that {name} "
                "keeps; leave it out (--workers 0)"
            )


def _check_answers(config: TrainConfig) -> None:
    """Refuses answers to prompts that a teacher cannot be asked."""
    if not config.loss.of_masks:
        raise ValueError(
            "loss.answers_weight: goes with focal_weight, dice_weight or iou_weight, which weigh "
            "the terms of the answers too, and these are all 0"
        )
    if config.text.clip:
        raise ValueError("loss.answers_weight: a teacher does not answer texts; leave text.clip")
    if config.cache_embeddings:
        raise ValueError(
            "loss.answers_weight: the teacher looks at the pictures, and cache_embeddings keeps "
            "embeddings in their place; leave one of them out"
        )


def _check_teacher(config: TrainConfig, free: list[str], still: bool) -> None:
    """Refuses a teacher that nobody listens to, and decoders that nothing but decay changes."""
    loss = config.loss
    if bool(config.teacher) != bool(loss.teacher_weight or loss.answers_weight):
        raise ValueError(
            "teacher: goes together with loss.teacher_weight or loss.answers_weight; give both "
            "(--teacher FILE --loss.teacher-weight 1) or neither"
        )
    if loss.answers_weight:
        _check_answers(config)
    if config.teacher_enlarge < 1 or config.teacher_enlarge > 1 and not config.teacher:
        raise ValueError(
            "teacher_enlarge: expected a whole number from 1 on, above 1 together with teacher, "
            f"got {config.teacher_enlarge}"
        )
    if config.narrow_decoder < 0 or config.narrow_decoder and not config.init_decoder:
        raise ValueError(
            "narrow_decoder: expected a number of units together with init_decoder, got "
            f"{config.narrow_decoder}"
        )
    if loss.teacher_weight and still:
        raise ValueError(
            "loss.teacher_weight: teaches the encoder, which is frozen (optim.frozen, "
            "cache_embeddings); free it or leave the weight out"
        )
    if loss.of_masks:
        return
    if not (config.teacher or loss.grouping_weight or loss.text_weight or loss.matching_weight):
        raise ValueError("loss: all weights are 0, so that nothing is learned; give one of them")
    if any(path.startswith("mask_decoder/") for path in free):
        raise ValueError(
            "optim.frozen: no mask is learned, and weight decay would wear the decoder out; freeze "
            "it (--optim.frozen 'prompt_encoder/*' 'mask_decoder/*')"
        )


def _check_text(config: TrainConfig) -> None:
    """Refuses data without text prompts beside data with them."""
    if not config.text.clip:
        if config.validation.drawn:
            raise ValueError("validation.drawn: needs a CLIP, --text.clip PATH")
        return
    for name in ("cut_paste", "scenes"):
        if getattr(config, name):
            raise ValueError(
                f"{name}: makes ever new pictures, and the crops of text prompts are embedded once "
                f"before training: --{name.replace('_', '-')} 0"
            )
    if config.repeat_masks and config.loss.matching_weight:
        raise ValueError(
            "repeat_masks: loss.matching_weight tells each mask from all others, and a repeated "
            "one would be told from itself; leave one of them out (--no-repeat-masks)"
        )
    if not 0 <= config.text.share <= 1 or config.text.variants < 1:
        raise ValueError(
            "text: expected a share of 0 to 1 and at least 1 variant, got "
            f"{config.text.share} and {config.text.variants}"
        )


def warnings(config: TrainConfig, params: dict) -> list[str]:
    """What the result will not be good for, one sentence each, and how to keep it.

    Args:
      config: the run's.
      params: the model's, without adapters.
    """
    said = _mask_warnings(config, params) if config.loss.of_masks else []
    if config.lora.rank:
        free = [p for p in adapted_paths(params, config.lora) if not is_frozen(p, config.optim)]
        if free:
            said.append(
                f"lora.rank {config.lora.rank}: {len(free)} of the matrices that get adapters are "
                f"trained themselves as well, such as {free[0]}; freeze them with optim.frozen"
            )
    if (config.stretch or config.blur) and not config.augment:
        said.append("stretch, blur: do nothing without augment")
    if config.blur and config.text.clip:
        said.append("blur: does nothing, crops are encoded as they are (text.clip)")
    if config.cut_outs and not config.cut_paste:
        said.append("cut_outs: nothing is pasted without composites; give them a weight, cut_paste")
    if config.loss.grouping_weight and _encoder_is_still(config, params):
        said.append("loss.grouping_weight: does nothing, the encoder is frozen")
    return said


def _mask_warnings(config: TrainConfig, params: dict) -> list[str]:
    """What becomes of kinds of prompts that are not trained, and of the predicted IoU."""
    said = []
    boxes, stages = config.prompts.box_probability, config.stages
    if boxes >= 1:
        said.append(
            "prompts.box_probability 1: the automatic generator and single clicks prompt with one "
            "point, which this run never trains; their masks and predicted IoU will drift. Keep it "
            "below 1, or use the result with boxes only"
        )
    if boxes <= 0:
        said.append(
            "prompts.box_probability 0: boxes are never trained, and their masks will drift. Keep "
            "it above 0, or use the result with points only"
        )
    if config.text.clip and config.text.share >= 1:
        said.append(
            "text.share 1: no first prompt is a click or a box, as in the paper, and their masks "
            "will drift. Lower it (0.75), or use the result with text only"
        )
    if config.model.text_width and not config.text.clip:
        said.append(
            "text.clip: the model takes text, which this run does not train, and its masks for "
            "text will drift. Give the CLIP that it was trained beside"
        )
    if all(stage.corrective_clicks + stage.mask_only_rounds == 0 for stage in stages):
        said.append(
            "stages: without corrective_clicks the mask for several prompts is never trained, and "
            "second clicks will drift. Give at least one, or use the result with one prompt only"
        )
    decoder = [path for path in _paths(params) if path.startswith("mask_decoder/")]
    head = [path for path in decoder if path.startswith(IOU_HEAD)]
    head_still = all(is_frozen(path, config.optim) for path in head)
    decoder_still = all(is_frozen(path, config.optim) for path in decoder)
    if head and (head_still and not decoder_still or not config.loss.iou_weight):
        said.append(
            "the predicted IoU is not trained (optim.frozen or loss.iou_weight 0) while the masks "
            "change: candidates are ranked by it, and the automatic generator keeps masks by it"
        )
    return said


def _encoder_is_still(config: TrainConfig, params: dict) -> bool:
    adapted = adapted_paths(params, config.lora) if config.lora.rank else []
    encoder = [path for path in _paths(params) if path.startswith(ENCODER)]
    frozen = all(is_frozen(path, config.optim) for path in encoder)
    return frozen and not any(path.startswith(ENCODER) for path in adapted)


def _paths(params: dict) -> list[str]:
    paths: list[str] = []
    path_tree(params, lambda path, leaf: paths.append(path))
    return paths
