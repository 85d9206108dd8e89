"""What a training run is: one frozen dataclass, filled in by a file under configs/."""

from __future__ import annotations

import dataclasses
from typing import Literal

from sam_jax.models.config import VIT_B, SamConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of the run with fixed array shapes; each stage compiles one step."""

    steps: int
    image_size: int
    """Side of the model frame in pixels; 0: what `init_from` was made for."""
    batch_size: int
    max_masks: int
    """Masks drawn from an image (the paper: up to 64)."""
    corrective_clicks: int = 8
    mask_only_rounds: int = 2
    min_mask_pixels: int = 16
    """Smaller masks, in pixels of the model frame, are left out."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Large-scale jitter: the photo's longest side over the image size."""
    mask_size: int = 0
    """Side of the grid that losses and clicks are taken on, a divisor of `image_size`; the
    decoder's logits are resized to it. 0: the decoder's own, a quarter of the image size."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and open choices of the losses (`sam_jax.training.losses`)."""

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    iou_on_all: bool = False
    """False: only the least-loss mask trains its predicted IoU (SAM 2 calls this SAM's way)."""
    box_on_all: bool = False
    """A first box, which is seldom ambiguous, trains all four masks, not the least-loss one of
    three alone."""
    text_on_all: bool = False
    """A first text likewise: it names one thing, and three masks that each try another one of a
    picture's things would learn little of what it says."""
    teacher_weight: float = 0.0
    """Of `losses.teacher_loss`, between the embedding and that of `TrainConfig.teacher`. With
    `focal_weight`, `dice_weight` and `iou_weight` 0 no prompts are simulated and no mask is learned
    (the decoupled distillation of MobileSAM, Zhang et al. 2023)."""
    answers_weight: float = 0.0
    """Of `losses.answers_loss`, between the four masks for a first click or box and those that
    `TrainConfig.teacher` gives for it, beside the losses of the true masks and with their
    weights."""
    grouping_weight: float = 0.0
    """Of `losses.grouping_loss` on the embedding; 0, as in the paper, for pretrained encoders."""
    text_weight: float = 0.0
    """Of the same loss with the texts' tokens as directions; 0 as in the paper."""
    matching_weight: float = 0.0
    """Of `losses.matching_loss` between masks and their own crops, for runs with `text.clip`; 0 as
    in the paper. With `devices.accumulate` masks are told from those of their part alone."""

    @property
    def of_masks(self) -> bool:
        """Whether masks are learned at all."""
        return bool(self.focal_weight or self.dice_weight or self.iou_weight)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The first prompt and how masks are fed back (`sam_jax.training.prompts`)."""

    box_probability: float = 0.5
    centre_probability: float = 0.0
    """Share of first clicks in the middle of a mask, where the paper's evaluation clicks; the rest
    lie anywhere in it, as all do in the paper's training."""
    box_noise: float = 0.1
    box_noise_most: float = 20.0
    """Pixels at an image size of 1024; scaled with the image size."""
    draw_probability: float = 0.8
    """Share of first boxes that are drawn as well, for a model with `draw_boxes`: some are not, so
    that the released code, which draws none, can use its weights."""
    mask_gradient: bool = True
    """Whether gradients flow through the mask that is fed back (in SAM 2 they do)."""
    remat: bool = True
    """Recompute each round's decoder in the backward pass: memory of one round, not of all."""
    unroll: bool = True
    """Write the rounds after the first out one by one (a CPU runs them faster); False: a loop,
    whose body is compiled once."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Training for text prompts (paper section 7.5): CLIP sees the object, later it reads."""

    clip: str = ""
    """A CLIP model with both towers (`sam_jax.checkpoint.clip`); empty: no text prompts. Its text
    tower goes into the trained model's file."""
    share: float = 1.0
    """How often a mask's first prompt is the embedding of its crop (the paper: always), not a
    click or a box."""
    variants: int = 4
    """Crops of each mask that are embedded, once, before training; one is drawn every time."""
    blends: int = 0
    """So many means of alike crops besides, for each mask (`train.blended_crops`): phrases tell
    less than crops show. The paper has none."""
    min_area: int = 100**2
    """Smaller masks, in pixels of the photo, are left out (`sam_jax.data.crops`)."""
    noise: float = 0.0
    """Largest length of the noise that is added to a crop's embedding, whose length is 1. Phrases'
    embeddings lie elsewhere than crops' (the modality gap), and noise makes the model rely on what
    the two have in common (as in CapDec, Nukrai et al. 2022); the paper has none."""
    scenes: int = 2000
    """How many different described scenes there are, if `TrainConfig.described` asks for any."""
    scene_size: int = 256
    """Their side, pixels."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule (`sam_jax.training.optim`)."""

    name: Literal["adamw", "muon"] = "adamw"
    """The paper's AdamW, or Muon for the matrices and Adam for everything else."""
    lr: float = 8e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    muon_lr: float = 5e-3
    """Rate of Muon's matrices, scaled as AdamW's updates are (RMS 0.2); scheduled like `lr`."""
    layer_decay: float = 0.8
    """Each encoder block's rate is this times the next one's; not in MobileSAM's encoder."""
    frozen: tuple[str, ...] = ()
    """Parameters whose path matches one of these patterns ("image_encoder/*") do not change."""
    warmup: int = 250
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (60_000 / 90_000, 86_666 / 90_000)
    """Where the step schedule divides the rate by 10, as fractions of the run."""
    clip: float = 0.0
    """Gradient norm above which gradients are scaled down; 0: never (the paper is silent)."""
    ema: float = 0.0
    """Decay of the averaged weights that are saved at the end; 0: the last weights are."""
    start_share: float = 0.0
    """With `init_from`: the share of the weights that the run begins with in those that it writes
    and validates. Where pictures are few, an average of both is often better than either (WiSE-FT,
    Wortsman et al. 2022)."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters for fine-tuning (`sam_jax.training.lora`). Freeze what they adapt."""

    rank: int = 0
    """0: none."""
    alpha: float = 16.0
    """An adapter's product is scaled by alpha / rank."""
    on: tuple[str, ...] = (
        "image_encoder/*/attn/qkv/kernel",
        "image_encoder/*/attn/proj/kernel",
        "mask_decoder/transformer/*_proj/kernel",
    )
    """Patterns of the paths of the matrices that get one."""


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """How a run is spread over devices and processes (`sam_jax.training.sharding`)."""

    fsdp: int = 1
    """Devices that share one copy of parameters and optimiser; a divisor of their number."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other: the memory of one, not of all."""
    coordinator: str = ""
    """For several processes: "auto" (TPU pods, Slurm) or HOST:PORT of process 0; empty: one."""
    processes: int = 1
    """Their number, where the coordinator is HOST:PORT; each gets an equal part of every batch."""
    process: int = 0
    """The number of this one."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """What is measured now and then while training, and at the end (`train.validation`)."""

    data: tuple[str, ...] = ()
    """Folders or files, relative to the data root, in any form that is trained on; none: never."""
    every: int = 1000
    """Steps between two validations; the last step is always followed by one."""
    images: int = 20
    """The first so many images of each; 0: all."""
    clicks: int = 3
    automatic: int = 0
    """Images of each that the automatic generator goes over as well."""
    points_per_side: int = 16
    """Of its grid."""
    drawn: int = 0
    """Drawn scenes whose objects are asked for by phrases and by their crops, if `text` is on."""
    pictures: int = 4
    """Photos of the first one on the sheet of predictions; 0: no sheet."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run. `python -m train --config FILE --field value` changes single fields."""

    name: str = "sam"
    model: SamConfig = VIT_B
    stages: tuple[Stage, ...] = (Stage(90_000, 1024, 256, 64),)
    loss: LossConfig = LossConfig()
    prompts: PromptConfig = PromptConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig = LoraConfig()
    text: TextConfig = TextConfig()
    devices: DevicesConfig = DevicesConfig()
    data_root: str = "data"
    """The folder that the sources' paths are relative to."""
    photos: tuple[tuple[str, float], ...] = ()
    """Data under `data_root`, each with its weight; `sam_jax.data.open_source` lists the forms."""
    cut_paste: float = 0.0
    """Weight of composites: masked objects of the photo folders pasted onto other photos."""
    cut_outs: tuple[tuple[str, float], ...] = ()
    """Data under `data_root` whose objects are pasted too, and which is not trained on by itself:
    cut-outs on no background, say. Their weights count beside twice those of `photos`, which give
    the objects of their own photographs and of one another's."""
    scenes: float = 0.0
    """Weight of procedural scenes."""
    described: float = 0.0
    """Weight of drawn scenes whose objects phrases describe (`sam_jax.data.described`)."""
    mask_area_power: float = 0.0
    """An image's masks are drawn with odds of area ** this; 0: all alike, as in the paper."""
    repeat_masks: bool = False
    """An image with fewer masks than a stage's `max_masks` gives them again, each time prompted
    otherwise. Losses are means over a batch's masks: without it an image of one mask counts an
    eighth of an image of eight."""
    augment: bool = True
    """Flips and changes of colour (the paper uses none on SA-1B)."""
    stretch: float = 0.0
    """With `augment`: width and height are scaled apart, each by up to exp(this) either way."""
    blur: float = 0.0
    """With `augment`, and without `text.clip`: share of pictures that are blurred."""
    init_from: str = ""
    """A model's name or file to start from; the sizes are its own, and of `model` only how it is
    computed counts (`dtype`, `drop_path`, `decoder_dropout`, `remat`, `scan_blocks`,
    and `draw_boxes` where it is on). Empty: fresh
    weights."""
    init_encoder: str = ""
    """An MAE checkpoint for the image encoder (`sam_jax.checkpoint.mae`); the rest is fresh."""
    init_decoder: str = ""
    """A model's name or file, whose prompt encoder and mask decoder come in the place of those that
    `init_from` or chance gives, with their sizes; the image encoder's neck is then fresh where the
    embedding's width differs, and boxes are drawn if that decoder is used to it or
    `model.draw_boxes` is on."""
    narrow_decoder: int = 0
    """With `init_decoder`: its MLPs keep so many of their units, those of the largest weights, for
    a smaller file; 0: all."""
    teacher: str = ""
    """A model's name or file, whose embeddings of the training pictures are learned
    (`loss.teacher_weight`; they have the width and the patch size of this model's), or whose
    answers to the prompts are (`loss.answers_weight`), or both."""
    teacher_enlarge: int = 1
    """The teacher sees the pictures so many times as large as the model that learns, and its
    embedding and masks are averaged down: at 2 one that is used to 1024 px teaches a model of
    512."""
    cache_embeddings: bool = False
    """With a frozen encoder: encode every picture once, before training, and keep the results."""
    structured_start: bool = False
    """Fresh weights that already see frequencies and look near (`sam_jax.training.scratch`)."""
    workers: int = 0
    """Processes that make batches, on hosts with cores to spare; 0: two threads of this one."""
    seed: int = 0
    workdir: str = "runs"
    """Checkpoints, metrics and the final weights go to workdir/name."""
    log_every: int = 20
    save_every: int = 500
    validation: ValidationConfig = ValidationConfig()
    profile: tuple[int, int] = (0, 0)
    """First step and number of steps that are traced into workdir/name/profile; 0 steps: none."""

    @property
    def total_steps(self) -> int:
        """Optimiser steps over all stages."""
        return sum(stage.steps for stage in self.stages)
