"""Scores a checkpoint, or results files that anything may have made.

Prints a table and writes metrics.json, and for a checkpoint detections.json, into its run folder.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detector.build import (
    build_device,
    build_metric,
    build_num_workers,
    build_precision,
    build_val_set,
    check_data,
    trained_model,
)
from detector.config import ConfigError, EvaluateConfig, typed_data, typed_train
from detector.data.loading import eval_loader
from detector.evaluation.inference import detect, progress, to_coco
from detector.evaluation.metrics import check_options, score
from detector.evaluation.paired import compare
from detector.evaluation.results import (
    EvaluationError,
    GroundTruth,
    read_detections,
    read_ground_truth,
    write_detections,
)
from detector.evaluation.sizes import AtSizes
from detector.evaluation.timing import measure
from detector.training.checkpoint import load_checkpoint
from detector.training.record import write_json

log = logging.getLogger("evaluate")


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score one or the other; return what metrics.json holds."""
    if config.checkpoint is not None:
        result = from_checkpoint(config)
    elif config.compare_with is not None:
        result = from_two_results(config)
    else:
        result = from_results(config)
    write_json(Path(file_of(config)), result)
    log.info("written to %s", config.output)
    return result


def file_of(config: EvaluateConfig) -> str:
    """Where all numbers are."""
    return str(Path(config.output) / "metrics.json")


def from_results(config: EvaluateConfig) -> dict[str, Any]:
    """Score a results file against a COCO-format ground truth."""
    metric = build_metric(config.metric or "coco")
    options = metric_options(config, metric)
    ground_truth = read_annotations(config)
    detections = read_detections(Path(str(config.detections)), ground_truth)
    metrics = score(metric, ground_truth, detections, **options)
    log.info(
        "%s, %s in percent:\n\n%s\n",
        config.detections,
        metric,
        metrics.table(all_in=file_of(config)),
    )
    return {"metrics": metrics.summary, "per_class": metrics.per_class}


def from_two_results(config: EvaluateConfig) -> dict[str, Any]:
    """How much better the first results file is than the second, and how sure that is."""
    metric = build_metric(config.metric or "coco")
    options = metric_options(config, metric)
    if options.pop("backend") != "pycocotools":
        raise ConfigError(f"backend={config.backend} is not for compare_with")
    ground_truth = read_annotations(config)
    first, second = (
        read_detections(Path(str(path)), ground_truth)
        for path in (config.detections, config.compare_with)
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


def read_annotations(config: EvaluateConfig) -> GroundTruth:
    """The ground truth of results files."""
    return read_ground_truth(Path(config.data["annotations"]))


def from_checkpoint(config: EvaluateConfig) -> dict[str, Any]:
    """Run a checkpoint over the validation images of its training, or of another data set."""
    path = Path(str(config.checkpoint))
    checkpoint = load_checkpoint(path)
    trained = typed_train(checkpoint["config"])
    other = {key: value for key, value in config.data.items() if key != "annotations"}
    data = typed_data(other) if other else trained.data
    device = build_device(config.device)
    precision = build_precision(config.precision or trained.precision)
    metric = build_metric(config.metric or trained.metric)
    options = metric_options(config, metric)
    report = check_data({"val": build_val_set(data, tuple(checkpoint["classes"]))}, data)
    write_json(Path(config.output) / "data_check.json", report.to_json())
    for line in report.lines():
        log.warning(line)
    val_set = report.usable(data.on_error)["val"]
    model = trained_model(trained, checkpoint)
    batches = eval_loader(val_set, num_workers=build_num_workers(data.num_workers, device))
    min_sizes = config.min_sizes or [trained.data.transform.min_size]
    at_sizes = AtSizes(model.to(device), min_sizes=min_sizes, flip=config.flip)
    found, seconds = detect(at_sizes, progress(batches), device=device, precision=precision)
    detections = to_coco(found, val_set.category_ids)
    write_detections(Path(config.output) / "detections.json", detections)
    metrics = score(metric, val_set.ground_truth(), detections, **options)
    table = metrics.table(all_in=file_of(config))
    log.info("%s, %d images, %s in percent:\n\n%s\n", path, len(val_set), metric, table)
    result: dict[str, Any] = {
        "metrics": metrics.summary,
        "per_class": metrics.per_class,
        "seconds_per_image": seconds / len(val_set),
    }
    if config.timing_images:
        count = config.timing_images
        timing = measure(model, val_set, device=device, precision=precision, max_images=count)
        log.info("one image of the model's own size: %s", timing.describe())
        result["timing"] = asdict(timing)
    return result
