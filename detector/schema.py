"""The types of all configuration values. Default values are in `configs/`."""

from dataclasses import dataclass
from typing import Any


@dataclass
class ModelConfig:
    """ResNet, neck, RPN and box head; `detector/model/` documents the values.

    `conventions` is a `Conventions` object, or None for the conventions of the weights.
    """

    backbone: str
    weights: str | None
    conventions: Any
    norm: str
    c5_dilation: int
    trainable_layers: int
    neck: str
    fpn_channels: int
    anchor_sizes: list[int]
    aspect_ratios: list[float]
    rpn_channels: int
    rpn_pre_nms_top_n_train: int
    rpn_pre_nms_top_n_test: int
    rpn_top_n_train: int
    rpn_top_n_test: int
    rpn_batch_size: int
    roi_pool: str
    roi_offset_lr_multiplier: float
    box_batch_size: int
    box_head_channels: int
    score_threshold: float
    nms: str
    nms_iou: float
    nms_sigma: float
    detections_per_image: int


@dataclass
class DeformConfig:
    """Which 3x3 convolutions are deformable, and in which way."""

    stages: str
    last_layers: int | None
    version: str
    offset_groups: int
    mask_start: float
    offset_limit: float | None
    offset_lr_multiplier: float


@dataclass
class TransformConfig:
    """Image sizes in pixels, which configs/data/ sets, and the augmentation, which configs/augment/
    sets.
    """

    train_min_sizes: list[int]
    min_size: int
    max_size: int
    flip_probability: float
    crop_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass
class CocoSplit:
    """A folder of images and a COCO-format annotation file."""

    images: str
    annotations: str


@dataclass
class CocoConfig:
    """COCO-format data.

    Paths are relative to `root`. If `classes` is None, the classes are those of the annotations.
    """

    format: str
    root: str
    train: CocoSplit
    val: CocoSplit
    classes: list[str] | None
    transform: TransformConfig
    keep_empty: bool
    group_by_aspect: bool
    on_error: str
    num_workers: int | str


@dataclass
class VocSplit:
    """Folders such as VOCdevkit/VOC2007, and the image set to take from each."""

    roots: list[str]
    image_set: str


@dataclass
class VocConfig:
    """VOC-format data. The roots of the splits are relative to `root`.

    If `classes` is None, the classes are collected from the annotations.
    """

    format: str
    root: str
    train: VocSplit
    val: VocSplit
    classes: list[str] | None
    transform: TransformConfig
    keep_empty: bool
    group_by_aspect: bool
    on_error: str
    num_workers: int | str


@dataclass
class ShapesConfig:
    """Generated data. `cache` is the folder that keeps it; None is the user's cache folder."""

    format: str
    num_train: int
    num_val: int
    image_size: int
    seed: int
    cache: str | None
    transform: TransformConfig
    keep_empty: bool
    group_by_aspect: bool
    on_error: str
    num_workers: int | str


DataConfig = CocoConfig | VocConfig | ShapesConfig


@dataclass
class ScheduleConfig:
    """Optimizer and learning rate. Lengths are in epochs, except `warmup_steps`."""

    epochs: int
    batch_size: int
    num_parts: int
    optimizer: str
    lr: float
    lr_batch_size: int | None
    momentum: float
    weight_decay: float
    norm_weight_decay: float
    warmup_steps: int
    decay: str
    milestones: list[int]
    gamma: float
    clip_norm: float | None
    ema_decay: float | None
    evaluate_every: int
    patience: int | None


@dataclass
class TrainConfig:
    """One training run."""

    model: ModelConfig
    deform: DeformConfig
    data: Any
    schedule: ScheduleConfig
    seed: int
    device: str
    devices: int
    max_restarts: int
    rank_timeout: float
    precision: str
    compile: bool
    deterministic: bool
    metric: str
    resume: str
    log_every: int
    checkpoint_every: int
    keep_every: int | None
    max_skipped_steps: int
    eval_batch_size: int
    limit_train_batches: int | None
    limit_val_batches: int | None
    overfit: int | None
    profile_steps: int
    plan: bool


@dataclass
class EvaluateConfig:
    """An evaluation of a checkpoint or of a results file, or a comparison of two results files."""

    checkpoint: str | None
    detections: str | None
    box_format: str
    categories: str
    compare_with: str | None
    data: Any
    metric: str | None
    class_agnostic: bool
    backend: str
    pixel_inclusive: bool
    iou_thresholds: list[float]
    resamples: int
    seed: int
    nms: str | None
    nms_iou: float | None
    nms_sigma: float | None
    min_sizes: list[int] | None
    flip: bool
    eval_batch_size: int
    timing_images: int
    device: str
    precision: str | None
    output: str


@dataclass
class PredictConfig:
    """The checkpoint and the images of a prediction, and what to write."""

    checkpoint: str
    images: str
    recursive: bool
    save: list[str]
    nms: str | None
    nms_iou: float | None
    nms_sigma: float | None
    min_score: float
    device: str
    precision: str | None
    output: str


@dataclass
class ExportConfig:
    """The checkpoint to export, and the images to check the exported model on."""

    checkpoint: str
    output: str
    format: str
    images: str | None
    size: list[int] | None
    nms: str | None


@dataclass
class OffsetsConfig:
    """The checkpoint whose offsets are summarised, and the images to run it on."""

    checkpoint: str
    data: Any
    max_images: int
    device: str
    output: str | None


@dataclass
class SamplingConfig:
    """The checkpoint whose sampling locations are drawn, the images, and the points (x, y)."""

    checkpoint: str
    images: str
    output: str
    points: list[list[float]]
    device: str


@dataclass
class DataCommandConfig:
    """The values that configs/data_command.yaml adds to the configuration of a training."""

    decode: bool
    fix: str | None
    json: str | None
    out: str
    num_images: int
    rounds: int
