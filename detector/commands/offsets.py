"""Summarises what the deformable layers of a checkpoint have learned.

Writes offsets.md and offsets.json and, if RoI pooling is deformable, roi_bins.json.
"""

import logging
from pathlib import Path

from detector.analysis.offsets.layer_statistics import as_json, measure_layers
from detector.analysis.offsets.report import bin_rows, dilation_rows, offsets_rows
from detector.analysis.offsets.roi_bins import bin_movements
from detector.builders.data import build_val_set, check_data
from detector.builders.device import build_device
from detector.builders.model import trained_model
from detector.config import parse_data, parse_train
from detector.schema import OffsetsConfig
from detector.tables import table
from detector.training.checkpoint import load_checkpoint
from detector.training.durable import write_json

log = logging.getLogger("offsets")


def run(config: OffsetsConfig) -> None:
    """Run the checkpoint on the validation images and write statistics of all layers.

    Raises:
        CheckpointError, WeightsError: the checkpoint cannot be used.
        DatasetError: the images cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = Path(config.checkpoint)
    checkpoint = load_checkpoint(path)
    trained = parse_train(checkpoint["config"])
    data = parse_data(config.data) if config.data else trained.data
    device = build_device(config.device)
    report = check_data({"val": build_val_set(data, tuple(checkpoint["classes"]))}, data)
    for line in report.lines():
        log.warning(line)
    val_set = report.usable(data.on_error)["val"]
    model = trained_model(trained, checkpoint).to(device)
    layers = as_json(measure_layers(model, val_set, device=device, max_images=config.max_images))
    output = Path(config.output) if config.output is not None else path.absolute().parent.parent
    tables = f"effective dilation\n\n{table(*dilation_rows(layers))}\n"
    if any(layer["is_deformable"] for layer in layers.values()):
        tables += f"\noffsets and masks\n\n{table(*offsets_rows(layers))}\n"
    bins = bin_movements(model, val_set, device=device, max_images=config.max_images)
    if bins:
        tables += f"\nbins of RoI pooling\n\n{table(*bin_rows(bins))}\n"
        write_json(output / "roi_bins.json", bins)
    write_json(output / "offsets.json", layers)
    (output / "offsets.md").write_text(tables, encoding="utf-8")
    log.info("%s\nwritten to %s", tables, output)
