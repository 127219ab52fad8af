"""Detects in images with a checkpoint's model, and draws what it finds.

Writes drawn/, one picture an image, and predictions.json: for each image

    {file, width, height, predictions: [{class, label, score, box}]}

by falling score; a label is 1..K, a box xyxy in pixels of the image as it is looked at, turned as
its EXIF orientation says. Images are JPEG, PNG, WebP and BMP; other files and broken images are
named and left out, and the exit code is then 1.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from detector.build import build_device, build_precision, trained_model
from detector.config import ConfigError, PredictConfig, typed_train
from detector.data.errors import DatasetError, shown
from detector.data.images import read_image
from detector.evaluation.inference import to_float
from detector.training.checkpoint import load_checkpoint

log = logging.getLogger("predict")
# Of images in a folder. TIFF is not read: so that it is not skipped silently either.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
COLORS = ("red", "lime", "blue", "orange", "magenta", "cyan", "yellow", "purple")  # of the labels


def run(config: PredictConfig) -> None:
    """Detect in every image, write the pictures and predictions.json.

    Raises:
        ConfigError: a value is out of its range, or the pictures would replace the images.
        CheckpointError, WeightsError: the checkpoint cannot be used.
        DatasetError: there is no image, or some were left out; the others' results are written.
    """
    paths = image_paths(Path(config.images))
    folder = Path(config.output)
    if (folder / "drawn").resolve() == paths[0].resolve().parent:
        raise ConfigError(f"output={folder}: the pictures would replace the images in drawn/")
    checkpoint = load_checkpoint(Path(config.checkpoint))
    trained = typed_train(checkpoint["config"])
    classes = tuple(checkpoint["classes"])
    device = build_device(config.device)
    precision = build_precision(config.precision or trained.precision)
    model = trained_model(trained, checkpoint).to(device).eval()

    try:
        (folder / "drawn").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={folder}: cannot be written ({error.strerror})") from error
    names_drawn = drawn_names(paths)
    predictions: list[dict[str, Any]] = []
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
        prediction = described(path.name, image, result, classes)
        predictions.append(prediction)
        draw(image, prediction["predictions"]).save(folder / "drawn" / names_drawn[path])
        names = [f"{one['class']} {one['score']:.2f}" for one in prediction["predictions"]]
        log.info("%s: %s", shown(path.name), ", ".join(names) or "nothing")
    content = json.dumps(predictions, indent=1)
    (folder / "predictions.json").write_text(content, encoding="utf-8")

    if predictions:
        total, number = time.perf_counter() - start, len(predictions)
        log.info(
            "%d images in %.1f s: %.1f ms each, %.1f ms of it the model; written to %s",
            *(number, total, 1000 * total / number, 1000 * seconds / number, folder),
        )
    left_out = len(paths) - len(predictions)
    if left_out:
        raise DatasetError(f"{left_out} of {len(paths)} images could not be read and were left out")


def image_paths(images: Path) -> list[Path]:
    """The file, or the images of the folder in the order of their names.

    Raises:
        DatasetError: there is no such thing, or no image in it.
    """
    if not images.is_dir():
        if not images.is_file():
            raise DatasetError(f"images={images}: no such file or folder")
        return [images]
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DatasetError(f"images={images}: holds no {', '.join(SUFFIXES)}")
    return paths


@torch.no_grad()
def detect(
    model: FasterRCNN, image: Tensor, *, device: torch.device, precision: torch.dtype
) -> dict[str, Tensor]:
    """The model's result for one image, on the CPU and in float32, which waits for the device."""
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
    """What predictions.json says of an image."""
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


def draw(image: Tensor, predictions: list[dict[str, Any]]) -> Image.Image:
    """The image with its boxes, classes and scores, a colour a class."""
    if predictions:
        image = draw_bounding_boxes(
            image,
            torch.tensor([one["box"] for one in predictions]),
            labels=[f"{one['class']} {one['score']:.2f}" for one in predictions],
            colors=[COLORS[(one["label"] - 1) % len(COLORS)] for one in predictions],
            width=2,
        )
    return to_pil_image(image)


def drawn_names(paths: list[Path]) -> dict[Path, str]:
    """Of each image its own name where it is a JPEG or PNG, else that with .png, or with more of
    these where another image has that name.
    """
    names = {p: p.name for p in paths if p.suffix.lower() in (".jpg", ".jpeg", ".png")}
    for path in paths:
        if path not in names:
            name = f"{path.name}.png"
            while name in names.values():
                name += ".png"
            names[path] = name
    return names
