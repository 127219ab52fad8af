"""The options and the output file of an evaluation, of a checkpoint or of results files."""

from pathlib import Path
from typing import Any

from detector.config import ConfigError
from detector.evaluation.entries import EvaluationError
from detector.evaluation.metrics import check_options
from detector.schema import EvaluateConfig


def metrics_file(config: EvaluateConfig) -> str:
    """Return the path of metrics.json."""
    return str(Path(config.output) / "metrics.json")


def metric_options(config: EvaluateConfig, metric: str) -> dict[str, Any]:
    """Return the options of `score` from the configuration.

    Raises:
        ConfigError: an option is set that the metric does not have, or its value is not allowed.
    """
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
