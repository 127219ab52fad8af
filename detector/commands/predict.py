"""Detects objects in images with a checkpoint's model, and draws them.

Writes predictions.json, a list with one entry for each image:

    {file, width, height, predictions: [{class, label, score, box}]}

`file` is the path relative to the given folder. Predictions are in the order of descending score;
a label is in 1..K, and a box is xyxy in pixels of the image after it was rotated according to its
EXIF orientation. `prediction_files.py` writes the other outputs that `save` selects. JPEG, PNG,
WebP, BMP, TIFF and GIF images are read. Other files are counted and ignored. An image that cannot
be read is named and left out; the exit code is then 1.
"""

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from detector.builders.device import build_device, build_precision
from detector.builders.model import trained_model
from detector.command_configs import with_nms
from detector.commands.input_images import image_paths, in_words
from detector.commands.prediction_files import PredictionFiles
from detector.config import ConfigError, parse_train
from detector.data.errors import DatasetError, printable
from detector.data.images import read_image
from detector.evaluation.inference import to_float
from detector.schema import PredictConfig
from detector.training.checkpoint import Checkpoint, load_checkpoint

log = logging.getLogger("predict")


def run(config: PredictConfig) -> None:
    """Detect objects in every image; write predictions.json and the outputs of `config.save`.

    Raises:
        ConfigError: a value is out of its range, or the pictures would replace the images.
        CheckpointError, WeightsError: the checkpoint cannot be used.
        DatasetError: there is no image, or some images could not be read or drawn. The results of
            all other images are written nevertheless.
    """
    folder = Path(config.output)
    paths, root = images_to_read(config)
    checkpoint = load_checkpoint(Path(config.checkpoint))
    trained = parse_train(checkpoint["config"])
    trained = with_nms(trained, config.nms, config.nms_iou, config.nms_sigma)
    classes = tuple(checkpoint["classes"])
    device = build_device(config.device)
    precision = build_precision(config.precision or trained.precision)
    model = trained_model(trained, checkpoint).to(device).eval()

    files = output_files(config, paths, root, checkpoint)
    predictions: list[dict[str, Any]] = []
    failed = 0
    start, seconds = time.perf_counter(), 0.0
    for path in paths:
        try:
            image = read_image(path)
        except DatasetError as error:
            log.warning("left out: %s", error)
            continue
        began = time.perf_counter()
        result = detect(model, image, device=device, precision=precision)
        seconds += time.perf_counter() - began
        seen = result["scores"] >= config.min_score
        result = {key: value[seen] for key, value in result.items()}
        name = path.relative_to(root).as_posix()
        prediction = described(name, image, result, classes)
        predictions.append(prediction)
        try:
            files.write_image(path, image, prediction)
        except (OSError, ValueError) as error:  # for instance, the file name is too long
            log.warning("not drawn or saved: %s (%s)", printable(name), error)
            failed += 1
        log.info("%s: %s", printable(name), found(prediction["predictions"], config.min_score))
    content = json.dumps(predictions, indent=1)
    (folder / "predictions.json").write_text(content, encoding="utf-8")
    files.finish(predictions)

    if predictions:
        total, number = time.perf_counter() - start, len(predictions)
        log.info(
            "%d images in %.1f s: %.1f ms each, of which the model took %.1f ms; written to %s",
            *(number, total, 1000 * total / number, 1000 * seconds / number, folder),
        )
    left_out = len(paths) - len(predictions)
    if left_out:
        raise DatasetError(f"{left_out} of {len(paths)} images could not be read and were left out")
    if failed:
        raise DatasetError(f"the pictures or texts of {failed} images could not be written")


def images_to_read(config: PredictConfig) -> tuple[list[Path], Path]:
    """List the images to detect objects in; return them and the folder that their names start at.

    Raises:
        ConfigError: the pictures would replace the images.
        DatasetError: there is no image.
    """
    given, folder = Path(config.images), Path(config.output)
    paths, others = image_paths(given, recursive=config.recursive, exclude=folder)
    if (folder / "drawn").resolve() in {path.resolve().parent for path in paths}:
        raise ConfigError(f"output={folder}: the pictures would replace the images in drawn/")
    if others:
        log.info("ignored files that are not images: %s", in_words(others))
    return paths, given if given.is_dir() else given.parent


def output_files(
    config: PredictConfig, paths: list[Path], root: Path, checkpoint: Checkpoint
) -> PredictionFiles:
    """Create the output folder, and return what writes the outputs of `config.save` into it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder, classes = Path(config.output), tuple(checkpoint["classes"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return PredictionFiles(
            folder, config.save, paths, root, classes, checkpoint["category_ids"]
        )
    except OSError as error:
        raise ConfigError(f"output={folder}: cannot be written ({error.strerror})") from error


def found(predictions: list[dict[str, Any]], min_score: float) -> str:
    """Summarise the predictions of an image in the order of each class's best score, such as
    "star x10, fish 0.93": a number of objects or, for a single object, its score.
    """
    numbers = Counter(one["class"] for one in predictions)
    best: dict[str, float] = {}
    for one in predictions:
        best.setdefault(one["class"], one["score"])
    words = [
        f"{name} x{numbers[name]}" if numbers[name] > 1 else f"{name} {score:.2f}"
        for name, score in best.items()
    ]
    return ", ".join(words) or f"nothing with a score of at least {min_score:g}"


@torch.no_grad()
def detect(
    model: FasterRCNN, image: Tensor, *, device: torch.device, precision: torch.dtype
) -> dict[str, Tensor]:
    """Run the model on one image and wait for its result.

    Args:
        image: uint8 (3, H, W).

    Returns:
        boxes (N, 4) and scores (N,) in float32 and labels (N,), all on the CPU.
    """
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        (result,) = model([to_float(image, device)])
    return {
        "boxes": result["boxes"].float().cpu(),
        "scores": result["scores"].float().cpu(),
        "labels": result["labels"].cpu(),
    }


def described(
    name: str, image: Tensor, result: dict[str, Tensor], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the entry of an image in predictions.json."""
    rows = zip(*(result[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
    return {
        "file": name,
        "width": image.shape[2],
        "height": image.shape[1],
        "predictions": [
            {"class": classes[label - 1], "label": label, "score": score, "box": box}
            for label, score, box in rows
        ],
    }
