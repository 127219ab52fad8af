"""Read the results files of any detector into COCO-format detections.

The formats are:

    a list of {image_id, category_id, bbox, score}           COCO's; detectron2, mmdetection, YOLO
    the same under annotations, predictions, results or detections; or one a line; or gzipped
    [{file, predictions: [{class, score, box}]}]              predict.py
    [{image_id, instances: [...]}]                            detectron2's instances_predictions.pth
    [{img_id, pred_instances: {bboxes, scores, labels}}]      mmdetection 3's results.pkl
    a list by image of lists by class of arrays (n, 5)        mmdetection 2's results.pkl
    a folder of STEM.txt with lines of class, cx, cy, w, h, score, normalised             YOLO's

An image may be given by its id, also as text, or by its file name, with or without folder and
extension. A category may be given by its id or its name. The meaning of boxes and category ids is
never guessed: `box_format` and `categories` set it, and `explain` reports when other values of
these options would fit better.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from detector.class_names import class_named
from detector.data.values import as_four_numbers, as_integer, as_number, brief
from detector.evaluation.coco_format import as_detections
from detector.evaluation.columns import Detections, GroundTruth, look_up_images_and_classes
from detector.evaluation.entries import EvaluationError
from detector.evaluation.result_formats import (
    ID_KEYS,
    IMAGE_KEYS,
    USUAL,
    Reading,
    content_of,
    entries_of,
    of_yolo,
)
from detector.evaluation.results import plain_detections, read_bytes

NAME_KEYS = ("category_name", "class_name", "category", "class", "name", "label")
BOX_KEYS, SCORE_KEYS = ("bbox", "box"), ("score", "confidence", "conf")


def read_results(
    path: Path, ground_truth: GroundTruth, *, box_format: str = "xywh", categories: str = "ids"
) -> Detections:
    """Read the results of a detector on the images of `ground_truth`.

    Args:
        path: a file, or the folder of YOLO's format.
        ground_truth: gives the ids and names of images and categories, and the sizes of images.
        box_format: one of BOX_FORMATS: corner and size, two corners, or centre and size; in pixels,
            or normalised to fractions of the image's width and height.
        categories: the meaning of a category id: `ids` if it is an id of the ground truth,
            `from_zero` or `from_one` if it is a position among the ground truth's ascending ids,
            counted from 0 or 1.

    Raises:
        EvaluationError: the file is missing or of an unknown format, or an entry has no valid
            image, category, box or score. The message shows at most 80 characters of the content.
    """
    given = Reading(box_format, categories)
    content: Any = None
    if not path.is_dir():
        encoded = read_bytes(path)
        usual = plain_detections(encoded) if given == USUAL else None
        if usual is not None and _belongs(usual, ground_truth):
            return usual
        content = content_of(encoded, path)
    names = _Names(ground_truth)
    boxes: dict[str, _BoxReader] = {}
    detections: list[dict[str, Any]] = []
    entries = (
        of_yolo(path) if path.is_dir() else entries_of(content, str(path), given, names.image_ids)
    )
    for where, entry, reading in entries:
        if not isinstance(entry, dict):
            raise EvaluationError(f"{where}: expected an object, got {brief(entry)}")
        if reading.box_format not in boxes:
            boxes[reading.box_format] = _BoxReader(ground_truth, reading.box_format)
        image_id = names.image(entry, where)
        detections.append(
            {
                "image_id": image_id,
                "category_id": names.category(entry, where, reading.categories),
                "bbox": boxes[reading.box_format].read(entry, image_id, where),
                "score": _score(entry, where),
            }
        )
    return as_detections(detections, source=str(path))


def _belongs(detections: Detections, ground_truth: GroundTruth) -> bool:
    """Return False if an id is unknown; the image may then be given by another key, or by name."""
    try:
        look_up_images_and_classes(ground_truth, detections)
    except EvaluationError:
        return False
    return True


class _Names:
    """Looks up images and categories of the ground truth by id or name."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self.image_ids = [image["id"] for image in ground_truth.entries]
        self.known_images = set(self.image_ids)
        self.files: dict[str, int | None] = {}  # None if several images have the name
        for image in ground_truth.entries:
            name = str(image.get("file_name", "")).replace("\\", "/")
            path = PurePosixPath(name)
            stem = name.removesuffix(path.suffix)
            for key in {name, path.name, stem, path.stem} - {""}:
                self.files[key] = None if key in self.files else image["id"]
        self.ids = ground_truth.category_ids.tolist()
        self.known_categories = set(self.ids)
        self.by_name = dict(zip(ground_truth.names, self.ids, strict=True))

    def image(self, entry: dict[str, Any], where: str) -> int:
        """Return the id of an entry's image.

        A number is an id; a text is an id or the name of a file.
        """
        key = next((key for key in IMAGE_KEYS if entry.get(key) is not None), None)
        if key is None:
            raise EvaluationError(f"{where}: key 'image_id' is missing")
        value = entry[key]
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise EvaluationError(f"{where}: {key}: expected an id or a name, got {brief(value)}")
        by_id = as_integer(value) if key in ID_KEYS else None
        by_id = by_id if by_id in self.known_images else None
        if by_id is not None and not isinstance(value, str):
            return by_id
        path = PurePosixPath(str(value).replace("\\", "/"))
        by_name = next(
            (
                self.files[name]
                for name in (str(path), path.name, path.stem)
                if self.files.get(name) is not None
            ),
            None,
        )
        if by_id is not None and by_name is not None and by_id != by_name:
            raise EvaluationError(
                f"{where}: {key} {brief(value)} is the id of one image and the file name of "
                f"another, whose id is {by_name}: write ids as numbers, names with their extension"
            )
        image_id = by_name if by_id is None else by_id
        if image_id is None:
            raise EvaluationError(
                f"{where}: {key} {brief(value)} is not in the ground truth's images"
            )
        return image_id

    def category(self, entry: dict[str, Any], where: str, categories: str) -> int:
        """Return the id of an entry's category."""
        first = {"ids": None, "from_zero": 0, "from_one": 1}[categories]
        value = entry.get("category_id")
        category_id = as_integer(value)
        if category_id is not None:
            if first is not None:
                return self.id_at(category_id, first, where)
            if category_id not in self.known_categories:
                raise EvaluationError(
                    f"{where}: category_id {category_id} is not in the ground truth's categories"
                    f"{self._hint(category_id)}"
                )
            return category_id
        keys = [key for key in ("category_id", *NAME_KEYS) if isinstance(entry.get(key), str)]
        for key in keys:
            name = class_named(entry[key], self.by_name)
            if name is not None:
                return int(self.by_name[name])
        if keys:
            raise EvaluationError(
                f"{where}: category {brief(entry[keys[0]])} is not in the ground truth's categories"
            )
        if "category_id" not in entry:
            raise EvaluationError(f"{where}: key 'category_id' is missing")
        raise EvaluationError(f"{where}: category_id: expected an integer, got {brief(value)}")

    def _hint(self, category_id: int) -> str:
        """Suggest the option that would accept this id, or return an empty text."""
        if 0 <= category_id < len(self.ids):
            return "; if ids count the classes from 0, give categories=from_zero"
        return "; if ids count the classes from 1, give categories=from_one" * (
            category_id == len(self.ids)
        )

    def id_at(self, place: int, first: int, where: str) -> int:
        """Return the category id at a position among the ascending ids, counted from `first`."""
        if not first <= place < first + len(self.ids):
            raise EvaluationError(
                f"{where}: class {brief(place)}, counted from {first}, is not one of the ground "
                f"truth's {len(self.ids)} classes"
            )
        return int(self.ids[place - first])


class _BoxReader:
    """Converts boxes of one format to [x, y, width, height] in pixels."""

    def __init__(self, ground_truth: GroundTruth, box_format: str) -> None:
        self.form, _, unit = box_format.partition("_")
        self.sizes: dict[int, tuple[float, float]] = {}
        if unit:
            for image in ground_truth.entries:
                width, height = as_number(image.get("width")), as_number(image.get("height"))
                if not width or not height:
                    raise EvaluationError(
                        f"box_format={box_format} needs the width and height of every image; the "
                        f"ground truth's image {image['id']} has none"
                    )
                self.sizes[image["id"]] = (width, height)

    def read(self, entry: dict[str, Any], image_id: int, where: str) -> list[float]:
        """Return the box of an entry as [x, y, width, height] in pixels."""
        key = _key(entry, BOX_KEYS, where)
        four = as_four_numbers(entry[key])
        if four is None:
            raise EvaluationError(f"{where}: {key}: expected four numbers, got {brief(entry[key])}")
        if image_id in self.sizes:
            four = [
                value * side for value, side in zip(four, 2 * self.sizes[image_id], strict=True)
            ]
        x, y, w, h = four
        match self.form:
            case "xyxy":
                x, y, w, h = x, y, w - x, h - y
            case "cxcywh":
                x, y = x - w / 2, y - h / 2
        if w < 0 or h < 0:
            raise EvaluationError(
                f"{where}: {key}: expected a box of {self.form}, got {brief(entry[key])}, whose "
                "width or height would be negative"
            )
        return [x, y, w, h]


def _key(entry: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    """Return the first of these keys that an entry has."""
    found = next((key for key in keys if key in entry), None)
    if found is None:
        raise EvaluationError(f"{where}: key {keys[0]!r} is missing")
    return found


def _score(entry: dict[str, Any], where: str) -> float:
    key = _key(entry, SCORE_KEYS, where)
    value = as_number(entry[key])
    if value is None:
        raise EvaluationError(f"{where}: {key}: expected a finite number, got {brief(entry[key])}")
    return value
