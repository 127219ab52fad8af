"""The schema of the configuration: types, no defaults. The numbers live in `configs/`.

`typed` turns what Hydra composed into these dataclasses and refuses unknown keys, wrong types and
missing values with their full key.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# Keys of `deform` that earlier checkpoints lack, with the value that makes their model.
SINCE_THE_FIRST_CHECKPOINTS = {"offset_limit": None}


class ConfigError(ValueError):
    """A value that the configuration cannot have. The message names the key."""


@dataclass
class ModelConfig:
    """ResNet, FPN, RPN and box head; see `detector/model/` for what the values mean."""

    backbone: str
    weights: str | None
    norm: str
    c5_dilation: int
    trainable_layers: int
    fpn_channels: int
    anchor_sizes: list[int]
    aspect_ratios: list[float]
    rpn_top_n_train: int
    rpn_top_n_test: int
    rpn_batch_size: int
    box_batch_size: int
    box_head_channels: int
    score_threshold: float
    detections_per_image: int


@dataclass
class DeformConfig:
    """Which 3x3 convolutions deform, and how."""

    stages: str
    last_layers: int | None
    version: str
    offset_groups: int
    mask_start: float
    offset_limit: float | None
    offset_lr_multiplier: float


@dataclass
class TransformConfig:
    """Image sizes in pixels, of `data`, and the rest of the training transform, of `augment`."""

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
    """COCO-format data, paths relative to `root`; the classes are read from the annotations."""

    format: str
    root: str
    train: CocoSplit
    val: CocoSplit
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
    """VOC-format data; the classes are given, or collected from the annotations."""

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
    """Generated data; `cache` is where it is kept, null being the user's cache folder."""

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
    """Optimizer and learning rate; lengths are in epochs but for the warm-up's steps."""

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
    precision: str
    compile: bool
    deterministic: bool
    metric: str
    resume: str
    log_every: int
    checkpoint_every: int
    keep_every: int | None
    max_skipped_steps: int
    limit_train_batches: int | None
    limit_val_batches: int | None
    overfit: int | None
    profile_steps: int
    plan: bool


@dataclass
class EvaluateConfig:
    """One evaluation, of a checkpoint, of a results file, or of two results files side by side."""

    checkpoint: str | None
    detections: str | None
    compare_with: str | None
    data: Any
    metric: str | None
    class_agnostic: bool
    backend: str
    pixel_inclusive: bool
    iou_thresholds: list[float]
    resamples: int
    seed: int
    min_sizes: list[int] | None
    flip: bool
    timing_images: int
    device: str
    precision: str | None
    output: str


@dataclass
class PredictConfig:
    """What to detect in, by which checkpoint."""

    checkpoint: str
    images: str
    min_score: float
    device: str
    precision: str | None
    output: str


@dataclass
class OffsetsConfig:
    """Which checkpoint's offsets to look at, and on what."""

    checkpoint: str
    data: Any
    max_images: int
    device: str
    output: str | None


@dataclass
class SamplingConfig:
    """Which checkpoint samples in which images, and for which points (x, y)."""

    checkpoint: str
    images: str
    output: str
    points: list[list[float]]
    device: str


@dataclass
class DataCommandConfig:
    """What configs/data_command.yaml adds to a training's configuration."""

    decode: bool
    json: str | None
    out: str
    num_images: int
    rounds: int


def typed(schema: type[T], config: DictConfig | dict[str, Any], where: str = "") -> T:
    """The configuration as the dataclass `schema`.

    Raises:
        ConfigError: an unknown key, a wrong type or a missing value, with its full key.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = f"{where}.{error.full_key}" if where else error.full_key
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(result, schema)
    return result


def typed_data(config: DictConfig | dict[str, Any]) -> DataConfig:
    """The `data` part, by its format.

    Raises:
        ConfigError: as `typed`, or the format is unknown, or what is to happen on an error.
    """
    schemas = {"coco": CocoConfig, "voc": VocConfig, "shapes": ShapesConfig}
    name = config.get("format")
    if name not in schemas:
        raise ConfigError(f"data.format: {name} is none of {', '.join(schemas)}")
    data: DataConfig = typed(schemas[name], config, "data")
    workers = data.num_workers
    if workers != "auto" and (isinstance(workers, str) or workers < 0):
        raise ConfigError(f"data.num_workers={workers} must be auto or at least 0")
    if data.on_error not in ("stop", "warn"):
        raise ConfigError(f"data.on_error={data.on_error} is none of stop, warn")
    return data


def check_given(config: DictConfig) -> None:
    """Refuse a configuration without what nobody but the user knows.

    Raises:
        ConfigError: values are missing; it names all of them, as they are to be given.
    """
    kinds = dict.fromkeys(("annotations", "checkpoint", "detections"), "FILE")
    missing = list(_missing_keys(OmegaConf.to_container(config)))
    if missing:
        given = [f"{key}={kinds.get(key.rpartition('.')[2], 'FOLDER')}" for key in missing]
        raise ConfigError(f"missing: give {' '.join(given)}")


def _missing_keys(content: Any, prefix: str = "") -> Iterator[str]:
    """What is ???, in plain containers. OmegaConf's own fails at what refers to it."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _missing_keys(value, f"{prefix}.{name}" if prefix else str(name))
    elif content == "???":
        yield prefix


def check_root(data: DataConfig) -> None:
    """Refuse a data.root that is not there, before anything is built.

    Raises:
        ConfigError: there is no such folder.
    """
    if not isinstance(data, ShapesConfig) and not Path(data.root).is_dir():
        raise ConfigError(f"data.root={data.root}: no such folder; give the one with the data")


def typed_train(config: DictConfig | dict[str, Any]) -> TrainConfig:
    """The configuration of a training run, `data` included.

    Args:
        config: as Hydra composed it, or as a checkpoint holds it, perhaps of an earlier version.
    """
    if isinstance(config, DictConfig):
        check_given(config)
    else:
        deform = SINCE_THE_FIRST_CHECKPOINTS | config["deform"]
        config = {"plan": False} | config | {"deform": deform}
    result = typed(TrainConfig, config)
    result.data = typed_data(result.data)
    _check_ranges(result)
    return result


def typed_evaluate(config: DictConfig) -> EvaluateConfig:
    """The configuration of an evaluation.

    Raises:
        ConfigError: as `typed`; neither or both of a checkpoint and a results file are given, or a
            results file without its ground truth.
    """
    check_given(config)
    result = typed(EvaluateConfig, config)
    if (result.checkpoint is None) == (result.detections is None):
        raise ConfigError("give either checkpoint=PATH or detections=RESULTS.json")
    if result.checkpoint is not None and result.compare_with is not None:
        raise ConfigError("compare_with=B.json needs detections=A.json, not a checkpoint")
    if result.detections is not None and result.data["annotations"] is None:
        raise ConfigError("detections=... needs data.annotations=GT.json")
    if result.min_sizes is not None and min(result.min_sizes, default=0) < 1:
        raise ConfigError(f"min_sizes={result.min_sizes} must be sizes of at least 1 pixel")
    if result.timing_images < 0:
        raise ConfigError(f"timing_images={result.timing_images} must be at least 0")
    return result


def with_data_of_evaluation(config: DictConfig) -> DictConfig:
    """The configuration with what only a training needs of `data` filled in, where there is any:
    no augmentation, and the validation images for training ones.

    Raises:
        ConfigError: values are missing.
    """
    OmegaConf.set_struct(config, False)
    if "transform" in config.data:
        no_augmentation = OmegaConf.load(CONFIGS / "augment" / "none.yaml")
        config.data.transform = OmegaConf.merge(no_augmentation, config.data.transform)
    if "train" in config.data:
        config.data.train = None
        check_given(config)
        config.data.train = config.data.val
    return config


def typed_offsets(config: DictConfig) -> OffsetsConfig:
    """The configuration of a look at offsets.

    Raises:
        ConfigError: as `typed`, or no image is to be looked at.
    """
    check_given(config)
    result = typed(OffsetsConfig, config)
    if result.max_images < 1:
        raise ConfigError(f"max_images={result.max_images} must be at least 1")
    return result


def typed_sampling(config: DictConfig) -> SamplingConfig:
    """The configuration of a look at sampled places.

    Raises:
        ConfigError: as `typed`.
    """
    check_given(config)
    return typed(SamplingConfig, config)


def typed_predict(config: DictConfig) -> PredictConfig:
    """The configuration of a prediction.

    Raises:
        ConfigError: as `typed`, or a score that none can be.
    """
    check_given(config)
    result = typed(PredictConfig, config)
    if not 0 <= result.min_score <= 1:
        raise ConfigError(f"min_score={result.min_score} must be in [0, 1]")
    return result


def _check_ranges(config: TrainConfig) -> None:
    """What would fail far from here, or silently mean something else."""
    at_least: dict[str, tuple[float | None, float]] = {
        "seed": (config.seed, 0),
        "devices": (config.devices, 1),
        "max_restarts": (config.max_restarts, 0),
        "max_skipped_steps": (config.max_skipped_steps, 0),
        "profile_steps": (config.profile_steps, 0),
        "limit_train_batches": (config.limit_train_batches, 1),
        "limit_val_batches": (config.limit_val_batches, 1),
        "overfit": (config.overfit, 1),
        "keep_every": (config.keep_every, 1),
        "schedule.num_parts": (config.schedule.num_parts, 1),
        "schedule.lr_batch_size": (config.schedule.lr_batch_size, 1),
        "schedule.patience": (config.schedule.patience, 1),
        "log_every": (config.log_every, 1),
        "checkpoint_every": (config.checkpoint_every, 1),
        "schedule.epochs": (config.schedule.epochs, 1),
        "schedule.batch_size": (config.schedule.batch_size, 1),
        "schedule.evaluate_every": (config.schedule.evaluate_every, 1),
        "schedule.lr": (config.schedule.lr, 0),
        "model.fpn_channels": (config.model.fpn_channels, 1),
        "model.box_head_channels": (config.model.box_head_channels, 1),
        "model.c5_dilation": (config.model.c5_dilation, 1),
        "deform.offset_groups": (config.deform.offset_groups, 1),
        "data.transform.min_size": (config.data.transform.min_size, 1),
        "data.transform.max_size": (config.data.transform.max_size, 1),
    }
    if isinstance(config.data, ShapesConfig):
        at_least["data.num_train"] = (config.data.num_train, 1)
        at_least["data.num_val"] = (config.data.num_val, 1)
        at_least["data.image_size"] = (config.data.image_size, 32)
        at_least["data.seed"] = (config.data.seed, 0)
    for key, (value, least) in at_least.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{key}={value} must be at least {least}")
    if not 0 < config.deform.mask_start <= 1:
        raise ConfigError(f"deform.mask_start={config.deform.mask_start} must be in (0, 1]")
    limit = config.deform.offset_limit
    if limit is not None and not limit > 0:
        raise ConfigError(f"deform.offset_limit={limit} must be more than 0, or null")
    decay = config.schedule.ema_decay
    if decay is not None and not 0 <= decay < 1:
        raise ConfigError(f"schedule.ema_decay={decay} must be in [0, 1)")


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Plain containers: what a checkpoint and config.yaml hold. `typed_train` is the way back."""
    return asdict(config)


def config_hash(config: TrainConfig) -> str:
    """Twelve hexadecimal digits that name the configuration."""
    text = json.dumps(to_plain(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
