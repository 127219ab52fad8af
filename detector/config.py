"""Converts the configuration that Hydra composed into the dataclasses of `schema.py`.

`parse` refuses unknown keys, wrong types and missing values, and names the full key. `parse_train`
also refuses values that are out of their range.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detector.choices import (
    BACKBONES,
    DECAYS,
    METRICS,
    NECKS,
    NMS,
    NORMS,
    ON_ERROR,
    OPTIMIZERS,
    PRECISIONS,
    ROI_POOLS,
    STAGES,
    VERSIONS,
)
from detector.conventions import Conventions
from detector.schema import (
    CocoConfig,
    DataConfig,
    ModelConfig,
    ShapesConfig,
    TrainConfig,
    TransformConfig,
    VocConfig,
)

T = TypeVar("T")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class ConfigError(ValueError):
    """The configuration has a value that is not allowed. The message names the key."""


def parse(schema: type[T], config: DictConfig | dict[str, Any], where: str = "") -> T:
    """Convert a configuration to the dataclass `schema`.

    Args:
        where: the key under which the configuration stands, for error messages; empty for a whole
            configuration.

    Raises:
        ConfigError: a key is unknown, or a value is missing or has the wrong type. The message
            names the full key.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = f"{where}.{error.full_key}" if where else error.full_key
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(result, schema)
    return result


def parse_data(config: DictConfig | dict[str, Any]) -> DataConfig:
    """Convert the `data` part to the dataclass of its format.

    Raises:
        ConfigError: as in `parse`, or `format`, `num_workers` or `on_error` has a value that is not
            allowed.
    """
    schemas = {"coco": CocoConfig, "voc": VocConfig, "shapes": ShapesConfig}
    name = str(config.get("format"))
    check_choice("data.format", name, tuple(schemas))
    data: DataConfig = parse(schemas[name], config, "data")
    workers = data.num_workers
    if workers != "auto" and (isinstance(workers, str) or workers < 0):
        raise ConfigError(f"data.num_workers={workers} must be auto or at least 0")
    check_choice("data.on_error", data.on_error, ON_ERROR)
    return data


def parse_conventions(config: dict[str, Any] | None) -> Conventions | None:
    """Convert `model.conventions`; return None if the conventions of the weights are to be used.

    Raises:
        ConfigError: as in `parse`, or a value is not allowed.
    """
    if config is None or config == {"framework": "auto"}:
        return None
    try:
        return parse(Conventions, config, "model.conventions")
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def conventions(framework: str) -> Conventions:
    """Read the conventions of a framework from configs/conventions/.

    Args:
        framework: torchvision, detectron2 or mmdetection.
    """
    file = OmegaConf.load(CONFIGS / "conventions" / f"{framework}.yaml")
    assert isinstance(file, DictConfig)
    return parse(Conventions, file)


def check_given(config: DictConfig) -> None:
    """Refuse a configuration that lacks mandatory values, which are marked with ???.

    Raises:
        ConfigError: values are missing. The message lists all of them, as the user has to give
            them on the command line.
    """
    kinds = dict.fromkeys(("annotations", "checkpoint", "detections", "output"), "FILE")
    missing = list(_missing_keys(OmegaConf.to_container(config)))
    if missing:
        given = [f"{key}={kinds.get(key.rpartition('.')[2], 'FOLDER')}" for key in missing]
        raise ConfigError(f"missing: give {' '.join(given)}")


def _missing_keys(content: Any, prefix: str = "") -> Iterator[str]:
    """Yield the full key of every value that is ???.

    OmegaConf.missing_keys cannot be used: it fails where another value refers to a missing one.
    """
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _missing_keys(value, f"{prefix}.{name}" if prefix else str(name))
    elif content == "???":
        yield prefix


def check_root(data: DataConfig) -> None:
    """Refuse a data.root that does not exist, before anything is built.

    Raises:
        ConfigError: the folder does not exist.
    """
    if not isinstance(data, ShapesConfig) and not Path(data.root).is_dir():
        raise ConfigError(f"data.root={data.root}: no such folder; give the one with the data")


def parse_train(config: DictConfig | dict[str, Any]) -> TrainConfig:
    """Convert and check the configuration of a training run, including its `data` part.

    Args:
        config: the configuration that Hydra composed, or one that was saved in a checkpoint,
            possibly by an earlier version.

    Raises:
        ConfigError: as in `parse`, or a part is missing or a value is out of its range.
    """
    if isinstance(config, DictConfig):
        check_given(config)
    result = parse(TrainConfig, completed(config))
    result.data = parse_data(result.data)
    result.model.conventions = parse_conventions(result.model.conventions)
    _check_ranges(result)
    return result


def completed(config: DictConfig | dict[str, Any]) -> DictConfig:
    """Add the keys that configurations of earlier versions lack, with the values that do
    what those versions did.

    Raises:
        ConfigError: the configuration has no `model` or no `deform` part.
    """
    result = OmegaConf.create(config)
    assert isinstance(result, DictConfig)
    OmegaConf.set_struct(result, False)
    for part in ("model", "deform"):
        if part not in result:
            raise ConfigError(f"{part}: is missing: this is not a training configuration")
    result.setdefault("plan", False)
    result.setdefault("rank_timeout", 1800.0)
    result.setdefault("eval_batch_size", 1)
    result.deform.setdefault("offset_limit", None)
    if result.get("data", {}).get("format") == "coco":
        result.data.setdefault("classes", None)
    if "conventions" not in result.model:
        result.model.conventions = asdict(conventions("torchvision"))
    earlier = {
        "neck": "fpn",
        "rpn_channels": result.model.get("fpn_channels"),
        "rpn_pre_nms_top_n_train": result.model.get("rpn_top_n_train"),
        "rpn_pre_nms_top_n_test": result.model.get("rpn_top_n_test"),
        "roi_pool": "align",
        "roi_offset_lr_multiplier": 0.01,
        "nms": "hard",
        "nms_iou": 0.5,
        "nms_sigma": 0.5,
    }
    for key, value in earlier.items():
        if key not in result.model:
            result.model[key] = value
    return result


def _check_ranges(config: TrainConfig) -> None:
    """Refuse values that would fail much later or would silently be misunderstood.

    Everything about a training configuration that can be checked without torch is checked here.
    """
    model, deform, schedule = config.model, config.deform, config.schedule
    check_choice("metric", config.metric, METRICS)
    check_choice("precision", config.precision, PRECISIONS)
    check_choice("model.backbone", model.backbone, BACKBONES)
    check_choice("model.norm", model.norm, NORMS)
    check_choice("model.roi_pool", model.roi_pool, ROI_POOLS)
    check_choice("deform.stages", deform.stages, STAGES)
    check_choice("deform.version", deform.version, VERSIONS)
    check_choice("schedule.optimizer", schedule.optimizer, OPTIMIZERS)
    check_choice("schedule.decay", schedule.decay, DECAYS)
    at_least: dict[str, tuple[float | None, float]] = {
        "seed": (config.seed, 0),
        "devices": (config.devices, 1),
        "max_restarts": (config.max_restarts, 0),
        "rank_timeout": (config.rank_timeout, 1),
        "max_skipped_steps": (config.max_skipped_steps, 0),
        "profile_steps": (config.profile_steps, 0),
        "eval_batch_size": (config.eval_batch_size, 1),
        "limit_train_batches": (config.limit_train_batches, 1),
        "limit_val_batches": (config.limit_val_batches, 1),
        "overfit": (config.overfit, 1),
        "keep_every": (config.keep_every, 1),
        "schedule.num_parts": (schedule.num_parts, 1),
        "schedule.lr_batch_size": (schedule.lr_batch_size, 1),
        "schedule.patience": (schedule.patience, 1),
        "log_every": (config.log_every, 1),
        "checkpoint_every": (config.checkpoint_every, 1),
        "schedule.epochs": (schedule.epochs, 1),
        "schedule.batch_size": (schedule.batch_size, 1),
        "schedule.evaluate_every": (schedule.evaluate_every, 1),
        "schedule.lr": (schedule.lr, 0),
        "model.fpn_channels": (model.fpn_channels, 1),
        "model.rpn_channels": (model.rpn_channels, 1),
        "model.box_head_channels": (model.box_head_channels, 1),
        "model.c5_dilation": (model.c5_dilation, 1),
        "deform.offset_groups": (deform.offset_groups, 1),
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
    check_nms(model.nms, model.nms_iou, model.nms_sigma, "model.")
    _check_neck(model)
    _check_transform(config.data.transform)
    if not 0 < deform.mask_start <= 1:
        raise ConfigError(f"deform.mask_start={deform.mask_start} must be in (0, 1]")
    limit = deform.offset_limit
    if limit is not None and not limit > 0:
        raise ConfigError(f"deform.offset_limit={limit} must be more than 0, or null")
    decay = schedule.ema_decay
    if decay is not None and not 0 <= decay < 1:
        raise ConfigError(f"schedule.ema_decay={decay} must be in [0, 1)")


def _check_neck(model: ModelConfig) -> None:
    check_choice("model.neck", model.neck, NECKS)
    if not 0 <= model.trainable_layers <= 5:
        raise ConfigError(f"model.trainable_layers={model.trainable_layers} must be from 0 to 5")
    if model.neck == "fpn" and len(model.anchor_sizes) != 5:
        raise ConfigError(
            f"model.anchor_sizes={model.anchor_sizes} must be five sizes, one each for p2 to p6"
        )
    if model.neck == "dc5" and model.c5_dilation < 2:
        raise ConfigError("model.neck=dc5 needs model.c5_dilation of 2 or more, not 1")
    if not model.anchor_sizes:
        raise ConfigError("model.anchor_sizes=[] must be at least one size, for c4")


def _check_transform(transform: TransformConfig) -> None:
    sizes = transform.train_min_sizes
    if min(sizes, default=0) < 1:
        raise ConfigError(
            f"data.transform.train_min_sizes={sizes} must be sizes of at least 1 pixel"
        )
    limits = {"flip_probability": 1, "crop_probability": 1, "brightness": 1, "contrast": 1}
    for name, most in (limits | {"saturation": 1, "hue": 0.5}).items():
        value = getattr(transform, name)
        if not 0 <= value <= most:
            raise ConfigError(f"data.transform.{name}={value} must be in [0, {most}]")


def check_choice(key: str, value: str | None, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among those that are known; None is not checked.

    Raises:
        ConfigError: the value is unknown.
    """
    if value is not None and value not in known:
        raise ConfigError(f"{key}={value} must be one of {', '.join(known)}")


def check_from_scratch(model: ModelConfig) -> None:
    """Check that every layer is trained if the model starts without weights.

    Raises:
        ConfigError: some layers would keep their random initial weights.
    """
    if model.weights is None and (model.norm == "frozen_batch" or model.trainable_layers < 5):
        raise ConfigError(
            "model.weights=null trains from scratch: it needs model.trainable_layers=5 and "
            f"model.norm=batch, sync_batch or group, not {model.trainable_layers} and {model.norm}"
        )


def check_nms(
    nms: str | None, nms_iou: float | None, nms_sigma: float | None, prefix: str = ""
) -> None:
    """Refuse invalid settings of non-maximum suppression.

    Args:
        nms, nms_iou, nms_sigma: values to check; None is not checked.
        prefix: text that the error message puts before the key, such as "model.".

    Raises:
        ConfigError: a value is unknown or out of its range.
    """
    check_choice(f"{prefix}nms", nms, NMS)
    if nms_iou is not None and not 0 <= nms_iou <= 1:
        raise ConfigError(f"{prefix}nms_iou={nms_iou} must be in [0, 1]")
    if nms_sigma is not None and not nms_sigma > 0:
        raise ConfigError(f"{prefix}nms_sigma={nms_sigma} must be more than 0")


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Convert to the dictionaries and lists that a checkpoint and config.yaml hold. `parse_train`
    converts back.
    """
    return asdict(config)


def config_hash(config: TrainConfig) -> str:
    """Return twelve hexadecimal digits that identify the configuration."""
    text = json.dumps(to_plain(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
