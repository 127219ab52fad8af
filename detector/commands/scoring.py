"""What the ways of `evaluate.py` share: the metric's options, and where the numbers go."""

from pathlib import Path
from typing import Any

from detector.config import ConfigError
from detector.evaluation.entries import EvaluationError
from detector.evaluation.metrics import check_options
from detector.schema import EvaluateConfig


def file_of(config: EvaluateConfig) -> str:
    """Where all numbers are."""
    return str(Path(config.output) / "metrics.json")


def metric_options(config: EvaluateConfig, metric: str) -> dict[str, Any]:
    """The options of `score`, which the metric has."""
    options: dict[str, Any] = {
        "class_agnostic": config.class_agnostic,
        "backend": config.backend,
        "pixel_inclusive": config.pixel_inclusive,
        "iou_thresholds": tuple(config.iou_thresholds),
    }
    try:
        check_options(metric, **options)
    except EvaluationError as error:
        raise ConfigError(str(error)) from error
    return options
