"""Typed configurations of evaluate.py, predict.py and the commands that read a checkpoint."""

from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from detector.choices import (
    BACKENDS,
    BOX_FORMATS,
    CATEGORIES,
    EXPORT_FORMATS,
    METRICS,
    PRECISIONS,
    SAVED,
)
from detector.config import CONFIGS, ConfigError, check_choice, check_given, check_nms, parse
from detector.schema import (
    EvaluateConfig,
    ExportConfig,
    OffsetsConfig,
    PredictConfig,
    SamplingConfig,
    TrainConfig,
)


def parse_evaluate(config: DictConfig) -> EvaluateConfig:
    """Convert and check the configuration of an evaluation.

    Raises:
        ConfigError: as in `parse`; or neither or both of a checkpoint and a results file are given,
            a results file is given without its ground truth, or a value is out of its range.
    """
    check_given(config)
    result = parse(EvaluateConfig, config)
    if (result.checkpoint is None) == (result.detections is None):
        raise ConfigError("give either checkpoint=PATH or detections=RESULTS.json")
    if result.checkpoint is not None and result.compare_with is not None:
        raise ConfigError("compare_with=B.json needs detections=A.json, not a checkpoint")
    if result.detections is not None and result.data["annotations"] is None:
        raise ConfigError("detections=... needs data.annotations=GT.json")
    check_choice("box_format", result.box_format, BOX_FORMATS)
    check_choice("categories", result.categories, CATEGORIES)
    check_choice("metric", result.metric, METRICS)
    check_choice("backend", result.backend, BACKENDS)
    check_choice("precision", result.precision, PRECISIONS)
    check_nms(result.nms, result.nms_iou, result.nms_sigma)
    if result.min_sizes is not None and min(result.min_sizes, default=0) < 1:
        raise ConfigError(f"min_sizes={result.min_sizes} must be sizes of at least 1 pixel")
    if result.eval_batch_size < 1:
        raise ConfigError(f"eval_batch_size={result.eval_batch_size} must be at least 1")
    if result.timing_images < 0:
        raise ConfigError(f"timing_images={result.timing_images} must be at least 0")
    return result


def fill_in_training_data(config: DictConfig) -> DictConfig:
    """Fill in the parts of `data` that only training uses: an evaluation need not give them.

    If `data` has a transform, missing augmentation values are set to no augmentation. If it has a
    training split, that is replaced by the validation split.

    Raises:
        ConfigError: other values are missing.
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


def parse_offsets(config: DictConfig) -> OffsetsConfig:
    """Convert and check the configuration of `python -m detector.analysis.offsets`.

    Raises:
        ConfigError: as in `parse`, or `max_images` is below 1.
    """
    check_given(config)
    result = parse(OffsetsConfig, config)
    if result.max_images < 1:
        raise ConfigError(f"max_images={result.max_images} must be at least 1")
    return result


def parse_sampling(config: DictConfig) -> SamplingConfig:
    """Convert and check the configuration of `python -m detector.analysis.sampling`.

    Raises:
        ConfigError: as in `parse`.
    """
    check_given(config)
    return parse(SamplingConfig, config)


def parse_export(config: DictConfig) -> ExportConfig:
    """Convert and check the configuration of an export.

    Raises:
        ConfigError: as in `parse`, or the format or the NMS is unknown, or `size` is not two
            positive numbers.
    """
    check_given(config)
    result = parse(ExportConfig, config)
    check_choice("format", result.format, EXPORT_FORMATS)
    check_nms(result.nms, None, None)
    if result.size is not None and (len(result.size) != 2 or min(result.size) < 1):
        raise ConfigError(f"size={result.size} must be [h, w], in pixels")
    return result


def parse_predict(config: DictConfig) -> PredictConfig:
    """Convert and check the configuration of a prediction.

    Raises:
        ConfigError: as in `parse`, or a value is unknown or out of its range.
    """
    check_given(config)
    result = parse(PredictConfig, config)
    for kind in result.save:
        check_choice("save", kind, SAVED)
    check_choice("precision", result.precision, PRECISIONS)
    check_nms(result.nms, result.nms_iou, result.nms_sigma)
    if not 0 <= result.min_score <= 1:
        raise ConfigError(f"min_score={result.min_score} must be in [0, 1]")
    return result


def with_nms(
    trained: TrainConfig, nms: str | None, nms_iou: float | None, nms_sigma: float | None
) -> TrainConfig:
    """Return a checkpoint's configuration with other NMS settings, which need no new training.

    Args:
        nms, nms_iou, nms_sigma: values for the `model` keys of these names; None keeps the
            checkpoint's value.
    """
    model = trained.model
    model = replace(
        model,
        nms=model.nms if nms is None else nms,
        nms_iou=model.nms_iou if nms_iou is None else nms_iou,
        nms_sigma=model.nms_sigma if nms_sigma is None else nms_sigma,
    )
    return replace(trained, model=model)
