"""Writes the outputs of predict.py other than predictions.json.

drawn/NAME              the image with its boxes, classes and scores, in one colour per class
crops/CLASS/NAME.N.png  each detected object, cut out; N counts from 1 by descending score
coco.json               COCO format: images, categories, and the detections as annotations
yolo/NAME.txt           a line per detection: class from 0, centre and size as fractions of the
                        image's size, score; classes.txt has the names of the classes
predictions.csv         a row per detection: file, class, label, score, x1, y1, x2, y2
"""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

COLORS = ("red", "lime", "blue", "orange", "magenta", "cyan", "yellow", "purple")  # by label


class PredictionFiles:
    """Writes the output files of one run of predict.py.

    Args:
        folder: the folder to write to.
        kinds: the outputs to write, a selection of `choices.SAVED`.
        paths: the paths of all images, which are inside `root`.
        category_ids: the COCO category id of each class.
    """

    def __init__(
        self,
        folder: Path,
        kinds: list[str],
        paths: list[Path],
        root: Path,
        classes: tuple[str, ...],
        category_ids: list[int],
    ) -> None:
        self.folder = folder
        self.kinds = kinds
        self.names = drawn_names(paths, root)
        self.texts = text_names(paths, root)
        self.classes = classes
        self.category_ids = category_ids

    def write_image(self, path: Path, image: Tensor, prediction: dict[str, Any]) -> None:
        """Write the files of one image.

        Args:
            image: uint8 (3, H, W).
            prediction: the image's entry in predictions.json.
        """
        name, found = self.names[path], prediction["predictions"]
        if "drawn" in self.kinds:
            draw(image, found).save(_ready(self.folder / "drawn" / name))
        if "crops" in self.kinds:
            self._crops(to_pil_image(image), name, found)
        if "yolo" in self.kinds:
            width, height = prediction["width"], prediction["height"]
            lines = [yolo_line(one, width, height) for one in found]
            file = _ready(self.folder / "yolo" / self.texts[path])
            file.write_text("".join(lines))

    def _crops(self, image: Image.Image, name: str, found: list[dict[str, Any]]) -> None:
        for number, one in enumerate(found, start=1):
            x1, y1, x2, y2 = one["box"]
            box = (int(x1), int(y1), max(round(x2), int(x1) + 1), max(round(y2), int(y1) + 1))
            place = one["class"].replace("/", "_").replace("\\", "_")
            image.crop(box).save(_ready(self.folder / "crops" / place / f"{name}.{number}.png"))

    def finish(self, predictions: list[dict[str, Any]]) -> None:
        """Write the files that cover all images."""
        if "yolo" in self.kinds:
            names = self.folder / "classes.txt"
            names.write_text("".join(f"{name}\n" for name in self.classes), encoding="utf-8")
        if "coco" in self.kinds:
            content = json.dumps(coco(predictions, self.classes, self.category_ids))
            (self.folder / "coco.json").write_text(content, encoding="utf-8")
        if "csv" in self.kinds:
            with (self.folder / "predictions.csv").open(
                "w", newline="", encoding="utf-8", errors="surrogateescape"
            ) as file:
                rows = csv.writer(file)
                rows.writerow(("file", "class", "label", "score", "x1", "y1", "x2", "y2"))
                for image in predictions:
                    for one in image["predictions"]:
                        known = (one["class"], one["label"], one["score"])
                        rows.writerow((image["file"], *known, *one["box"]))


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def draw(image: Tensor, predictions: list[dict[str, Any]]) -> Image.Image:
    """Draw boxes, classes and scores on an image, in one colour per class."""
    if predictions:
        image = draw_bounding_boxes(
            image,
            torch.tensor([one["box"] for one in predictions]),
            labels=[f"{one['class']} {one['score']:.2f}" for one in predictions],
            colors=[COLORS[(one["label"] - 1) % len(COLORS)] for one in predictions],
            width=2,
        )
    return to_pil_image(image)


def yolo_line(one: dict[str, Any], width: int, height: int) -> str:
    """Format a prediction as a line of YOLO's text format."""
    x1, y1, x2, y2 = one["box"]
    box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    numbers = " ".join(f"{value:.6f}" for value in (*box, one["score"]))
    return f"{one['label'] - 1} {numbers}\n"


def coco(
    predictions: list[dict[str, Any]], classes: tuple[str, ...], category_ids: list[int]
) -> dict[str, Any]:
    """Convert all predictions to COCO format; ids of images and annotations count from 1."""
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for image_id, image in enumerate(predictions, start=1):
        size = {"width": image["width"], "height": image["height"]}
        images.append({"id": image_id, "file_name": image["file"], **size})
        for one in image["predictions"]:
            x1, y1, x2, y2 = one["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[one["label"] - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": one["score"],
                }
            )
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(category_ids, classes, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def drawn_names(paths: list[Path], root: Path) -> dict[Path, str]:
    """Return the name of the drawn picture of each image.

    For a JPEG or PNG image it is the path relative to `root`. For other images .png is appended,
    repeatedly if another picture has that name already.
    """
    relative = {path: path.relative_to(root).as_posix() for path in paths}
    drawable = (".jpg", ".jpeg", ".png")
    names = {path: name for path, name in relative.items() if path.suffix.lower() in drawable}
    for path, name in relative.items():
        if path not in names:
            name += ".png"
            while name in names.values():
                name += ".png"
            names[path] = name
    return names


def text_names(paths: list[Path], root: Path) -> dict[Path, str]:
    """Return the name of the YOLO text file of each image.

    It is the path relative to `root` with .txt instead of the suffix. If two images differ only in
    their suffixes, .txt is appended to the whole name instead.
    """
    relative = {path: path.relative_to(root) for path in paths}
    stems = Counter(name.with_suffix(".txt") for name in relative.values())
    names = {}
    for path, name in relative.items():
        text = name.with_suffix(".txt")
        names[path] = text.as_posix() if stems[text] == 1 else f"{name.as_posix()}.txt"
    return names
