"""Scores a checkpoint or results files of any detector, prints a table and writes metrics.json.

Scoring results files does not import torch, which takes seconds to import.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.commands.evaluation_options import metric_options, metrics_file
from detector.config import ConfigError
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.explain import LOW, explain
from detector.evaluation.metrics import Metrics, score
from detector.evaluation.paired import compare
from detector.evaluation.result_files import read_results
from detector.evaluation.results import read_ground_truth
from detector.schema import EvaluateConfig
from detector.training.durable import write_json

log = logging.getLogger("evaluate")


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score a checkpoint or a results file, or compare two results files; return the content of
    metrics.json.
    """
    if config.checkpoint is not None:
        from detector.commands.evaluate_checkpoint import from_checkpoint

        result = from_checkpoint(config)
    elif config.compare_with is not None:
        result = from_two_results(config)
    else:
        result = from_results(config)
    write_json(Path(metrics_file(config)), result)
    log.info("written to %s", config.output)
    return result


def from_results(config: EvaluateConfig) -> dict[str, Any]:
    """Score a results file against a COCO-format ground truth."""
    metric = config.metric or "coco"
    options = metric_options(config, metric)
    ground_truth = read_annotations(config)
    detections = read(config, str(config.detections), ground_truth)
    metrics = score(metric, ground_truth, detections, **options)
    log.info(
        "%s, %s in percent:\n\n%s\n",
        config.detections,
        metric,
        metrics.table(all_in=metrics_file(config)),
    )
    hints = explained(config, metrics, ground_truth, detections)
    for line in hints:
        log.warning("AP50 is under 5 %%: %s", line)
    told: dict[str, Any] = {"hints": hints} if hints else {}
    return {"metrics": metrics.summary, "per_class": metrics.per_class, **told}


def read(config: EvaluateConfig, file: str, ground_truth: GroundTruth) -> Detections:
    """Read a results file with the `box_format` and `categories` of the configuration."""
    form, categories = config.box_format, config.categories
    return read_results(Path(file), ground_truth, box_format=form, categories=categories)


def explained(
    config: EvaluateConfig,
    metrics: Metrics,
    ground_truth: GroundTruth,
    detections: Detections,
) -> list[str]:
    """Return hints at what may be wrong with the results if AP50 is very low, one line each."""
    numbers = metrics.summary
    ap50 = numbers.get("AP50", numbers.get("mAP"))
    if ap50 is None or ap50 >= LOW or config.class_agnostic:
        return []

    def reread(form: str, categories: str) -> Detections:
        other = replace(config, box_format=form, categories=categories)
        return read(other, str(config.detections), ground_truth)

    form, categories = config.box_format, config.categories
    return explain(ground_truth, detections, reread, box_format=form, categories=categories)


def from_two_results(config: EvaluateConfig) -> dict[str, Any]:
    """Compare two results files: the differences of their metrics, with confidence intervals."""
    metric = config.metric or "coco"
    options = metric_options(config, metric)
    if options.pop("backend") != "numpy":
        raise ConfigError(
            f"backend={config.backend} cannot be used with compare_with: leave it out"
        )
    ground_truth = read_annotations(config)
    first, second = (
        read(config, str(path), ground_truth) for path in (config.detections, config.compare_with)
    )
    comparison = compare(
        ground_truth,
        first,
        second,
        metric=metric,
        num_resamples=config.resamples,
        seed=config.seed,
        **options,
    )
    names = f"first: {config.detections}, second: {config.compare_with}"
    log.info("%s, %s:\n%s", names, metric, comparison.table())
    return {
        "metrics": {name: number and number.first for name, number in comparison.numbers.items()},
        "comparison": comparison.as_json(),
    }


def read_annotations(config: EvaluateConfig) -> GroundTruth:
    """Read the ground truth that results files are scored against."""
    return read_ground_truth(Path(config.data["annotations"]))
