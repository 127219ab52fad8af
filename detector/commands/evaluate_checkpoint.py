"""Runs a checkpoint on a data set and scores its detections: `evaluate.py checkpoint=PATH`.

Besides the metrics, it writes detections.json and data_check.json into the output folder.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detector.builders.data import build_val_set, check_data
from detector.builders.device import build_device, build_num_workers, build_precision
from detector.builders.model import trained_model
from detector.command_configs import with_nms
from detector.commands.evaluation_options import metric_options, metrics_file
from detector.config import ConfigError, parse_data, parse_train
from detector.data.loading import eval_loader
from detector.evaluation.inference import detect, in_order, progress, to_detections
from detector.evaluation.metrics import score
from detector.evaluation.results import write_detections
from detector.evaluation.test_time_augmentation import AtSizes
from detector.evaluation.timing import measure
from detector.schema import EvaluateConfig
from detector.training.checkpoint import load_checkpoint
from detector.training.durable import write_json

log = logging.getLogger("evaluate")


def from_checkpoint(config: EvaluateConfig) -> dict[str, Any]:
    """Score a checkpoint on the validation images of its training or of another data set; return
    the content of metrics.json.
    """
    path = Path(str(config.checkpoint))
    checkpoint = load_checkpoint(path)
    trained = parse_train(checkpoint["config"])
    trained = with_nms(trained, config.nms, config.nms_iou, config.nms_sigma)
    other = {key: value for key, value in config.data.items() if key != "annotations"}
    data = parse_data(other) if other else trained.data
    device = build_device(config.device)
    precision = build_precision(config.precision or trained.precision)
    metric = config.metric or trained.metric
    options = metric_options(config, metric)
    report = check_data({"val": build_val_set(data, tuple(checkpoint["classes"]))}, data)
    write_json(Path(config.output) / "data_check.json", report.to_json())
    for line in report.lines():
        log.warning(line)
    val_set = report.usable(data.on_error)["val"]
    model = trained_model(trained, checkpoint)
    loader = eval_loader(
        val_set,
        batch_size=config.eval_batch_size,
        num_workers=build_num_workers(data.num_workers, device),
        pin_memory=device.type == "cuda",
    )
    batches = progress(loader, num_images=len(val_set))
    min_sizes = config.min_sizes or [trained.data.transform.min_size]
    if trained.model.nms != "hard" and (config.flip or len(min_sizes) > 1):
        raise ConfigError(
            f"model.nms={trained.model.nms} cannot be combined with flip or several min_sizes, "
            "whose detections are merged by hard NMS: give nms=hard"
        )
    at_sizes = AtSizes(model.to(device), min_sizes=min_sizes, flip=config.flip)
    found, seconds = detect(at_sizes, batches, device=device, precision=precision)
    found = in_order(found, (record.image_id for record in val_set.records))
    detections = to_detections(found, val_set.category_ids)
    write_detections(Path(config.output) / "detections.json", detections)
    metrics = score(metric, val_set.ground_truth(), detections, **options)
    table = metrics.table(all_in=metrics_file(config))
    log.info("%s, %d images, %s in percent:\n\n%s\n", path, len(val_set), metric, table)
    result: dict[str, Any] = {
        "metrics": metrics.summary,
        "per_class": metrics.per_class,
        "seconds_per_image": seconds / len(val_set),
    }
    if config.timing_images:
        timing = measure(
            model,
            val_set,
            device=device,
            precision=precision,
            max_images=config.timing_images,
            batch_size=config.eval_batch_size,
        )
        log.info("one image at the size of the training: %s", timing.describe())
        result["timing"] = asdict(timing)
    return result
