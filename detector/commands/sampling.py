"""Draws where the network of a checkpoint samples in images."""

import logging
from pathlib import Path

import torch

from detector.analysis.charts import save
from detector.analysis.sampling.picture import sampling_figure
from detector.analysis.sampling.point_sampling import sampling_at_points
from detector.builders.device import build_device
from detector.builders.model import trained_model
from detector.commands.input_images import image_paths
from detector.config import ConfigError, parse_train
from detector.data.images import read_image
from detector.evaluation.inference import to_float
from detector.schema import SamplingConfig
from detector.training.checkpoint import load_checkpoint

log = logging.getLogger("sampling")
NUM_POINTS = 3  # points per image if the user gives none: the centres of the first detections


def run(config: SamplingConfig) -> None:
    """Write a picture for every image.

    Raises:
        CheckpointError, WeightsError: the checkpoint cannot be used.
        ConfigError: a point is outside an image.
        DatasetError: an image cannot be read, or there is no image.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    checkpoint = load_checkpoint(Path(config.checkpoint))
    device = build_device(config.device)
    model = trained_model(parse_train(checkpoint["config"]), checkpoint).to(device).eval()
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    paths, _ = image_paths(Path(config.images), recursive=False, exclude=output)
    for path in paths:
        image = read_image(path)
        height, width = image.shape[-2:]
        points = [(x, y) for x, y in config.points]
        for x, y in points:
            if x >= width or y >= height:
                raise ConfigError(
                    f"points={x:g},{y:g} is outside {path}, which is {width}x{height} pixels"
                )
        pixels = to_float(image, device)
        if not points:
            with torch.no_grad():
                boxes = model([pixels])[0]["boxes"][:NUM_POINTS].cpu().tolist()
            points = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]
            points = points or [(width / 2, height / 2)]
        target = output / f"{path.stem}.png"
        sampled = sampling_at_points(model, pixels, points)
        save(sampling_figure(image.permute(1, 2, 0).numpy(), sampled), target)
        log.info("%s", target)
