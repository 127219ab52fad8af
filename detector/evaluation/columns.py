"""Ground truth and detections of a whole set, as columns of numbers.

COCO-format content enters here once, and everything that scores works on columns. A column is
checked as a whole; the entries are looked at one by one, for the culprit, only after that fails.

Ground truth is a dictionary of three lists, detections are one list:

    images       [{id, ...}]
    annotations  [{image_id, category_id, bbox, area, iscrowd}]
    categories   [{id, name}]

    detections   [{image_id, category_id, bbox, score}]

A bbox is [x, y, width, height] in pixels, an area is in square pixels. `iscrowd` (0 or 1) marks
what is neither to be found nor wrong to be found: a crowd in COCO, a difficult object in VOC.

I: images;  K: categories;  G: annotations;  D: detections.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from detector.evaluation.entries import (
    ANNOTATION,
    DETECTION,
    INTEGER,
    LARGEST,
    LIST,
    TEXT,
    EvaluationError,
    check_distinct,
    check_keys,
)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is to be found, and in which images.

    Attributes:
        image_ids: int64 (I,), rising.
        category_ids: int64 (K,), rising.
        names: of the K categories.
        images: int64 (G,), the place of each annotation's image in `image_ids`.
        classes: int64 (G,), that of its category in `category_ids`.
        boxes: float64 (G, 4) x, y, width, height in pixels.
        areas: float64 (G,) in square pixels.
        is_crowd: bool (G,).
        entries: the images as they were listed, with their file names and sizes.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    names: tuple[str, ...]
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    entries: list[dict[str, Any]]

    def of(self, chosen: np.ndarray) -> "GroundTruth":
        """The same images with some of the annotations: a mask (G,) or their positions."""
        return GroundTruth(
            self.image_ids,
            self.category_ids,
            self.names,
            self.images[chosen],
            self.classes[chosen],
            self.boxes[chosen],
            self.areas[chosen],
            self.is_crowd[chosen],
            self.entries,
        )

    def to_coco(self) -> dict[str, Any]:
        """As COCO-format content, annotations numbered from 1: pycocotools would lose the matches
        of an id 0 and confuse equal ones.
        """
        columns = (
            self.image_ids[self.images].tolist(),
            self.category_ids[self.classes].tolist(),
            self.boxes.tolist(),
            self.areas.tolist(),
            self.is_crowd.astype(int).tolist(),
            range(1, 1 + len(self.images)),
        )
        keys = ("image_id", "category_id", "bbox", "area", "iscrowd", "id")
        ids = zip(self.category_ids.tolist(), self.names, strict=True)
        return {
            "images": [dict(entry) for entry in self.entries],
            "annotations": [
                dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)
            ],
            "categories": [{"id": category_id, "name": name} for category_id, name in ids],
        }


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found.

    Attributes:
        image_ids: int64 (D,).
        category_ids: int64 (D,).
        boxes: float64 (D, 4) x, y, width, height in pixels.
        scores: float64 (D,).
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def of(self, chosen: np.ndarray) -> "Detections":
        """Some of them: a mask (D,) or their positions."""
        return Detections(
            self.image_ids[chosen],
            self.category_ids[chosen],
            self.boxes[chosen],
            self.scores[chosen],
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """As COCO-format results."""
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        keys = ("image_id", "category_id", "bbox", "score")
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(keys, row, strict=True)) for row in rows]


AnyGroundTruth = GroundTruth | dict[str, Any]
AnyDetections = Detections | list[dict[str, Any]]


def as_ground_truth(dataset: Any, *, source: str = "ground truth") -> GroundTruth:
    """Return COCO-format content as columns, as `numpy.asarray` does: columns stay what they are.

    A missing `iscrowd` becomes 0, a missing `area` that of the box. The annotations' own ids mean
    nothing to a metric and are left out.

    Args:
        dataset: as `json.load` gives it. It is not changed.
        source: what messages call it, such as the name of its file.

    Raises:
        EvaluationError: something is missing, of a wrong type, not finite, twice there (an image
            id, a category id or name), or refers to an image or category that is not there.
    """
    if isinstance(dataset, GroundTruth):
        return dataset
    check_keys(dataset, dict.fromkeys(("images", "annotations", "categories"), LIST), source)
    annotations = dataset["annotations"]

    def check() -> None:
        for position, annotation in enumerate(annotations):
            check_keys(annotation, ANNOTATION, f"{source}: annotations[{position}]")

    try:
        columns = {
            key: [entry[key] for entry in annotations]
            for key in ("image_id", "category_id", "bbox")
        } | {key: [entry.get(key) for entry in annotations] for key in ("area", "iscrowd")}
    except (TypeError, KeyError, AttributeError):
        check()
        raise
    return ground_truth_of(dataset["images"], dataset["categories"], columns, check, source=source)


def ground_truth_of(
    images: list[Any],
    categories: list[Any],
    annotations: dict[str, list[Any]],
    check: Callable[[], None],
    *,
    source: str,
) -> GroundTruth:
    """Columns from lists of what stands in the entries, of which `as_ground_truth` says what it may
    be.

    Args:
        annotations: a list (G,) for each of image_id, category_id, bbox, area and iscrowd; None
            stands for a missing area and iscrowd.
        check: called where something is odd, to name the culprit.

    Raises:
        EvaluationError: as `as_ground_truth`.
    """
    check_distinct(images, {"id": INTEGER}, f"{source}: images")
    check_distinct(categories, {"id": INTEGER, "name": TEXT}, f"{source}: categories")
    categories = sorted(categories, key=lambda category: category["id"])
    image_ids = np.sort(np.array([image["id"] for image in images], dtype=np.int64))
    category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
    try:
        boxes = _boxes(annotations["bbox"])
        own = (boxes[:, 2] * boxes[:, 3]).tolist()
        areas = _numbers(
            [
                of_box if area is None else area
                for area, of_box in zip(annotations["area"], own, strict=True)
            ]
        )
        flags = {0: False, 1: True, None: False}
        is_crowd = np.array([flags[flag] for flag in annotations["iscrowd"]], dtype=bool)
        image_column, category_column = (
            _integers(annotations[key]) for key in ("image_id", "category_id")
        )
        if (areas < 0).any():
            raise _Odd
    except _ODD:
        check()
        raise
    where = f"{source}: annotations"
    return GroundTruth(
        image_ids,
        category_ids,
        tuple(category["name"] for category in categories),
        places(image_ids, image_column, "image_id", where),
        places(category_ids, category_column, "category_id", where),
        boxes,
        areas,
        is_crowd,
        [dict(image) for image in images],
    )


def as_detections(entries: Any, *, source: str = "detections") -> Detections:
    """Return COCO-format results as columns; columns stay what they are.

    Args:
        entries: a list of results; may be empty. It is not changed.
        source: what messages call them, such as the name of their file.

    Raises:
        EvaluationError: a key is missing, a value is of a wrong type or not finite, or a box has a
            negative side.
    """
    if isinstance(entries, Detections):
        return entries
    if not isinstance(entries, list):
        raise EvaluationError(f"{source}: expected a list, got {reprlib.repr(entries)}")
    try:
        return detections_of({key: [entry[key] for entry in entries] for key in DETECTION})
    except _ODD:
        for position, entry in enumerate(entries):
            check_keys(entry, DETECTION, f"{source}[{position}]")
        raise


def detections_of(columns: dict[str, list[Any]]) -> Detections:
    """Columns from a list (D,) for each of image_id, category_id, bbox and score.

    Raises:
        TypeError, ValueError, OverflowError: something in them is none of what COCO's format has.
    """
    return Detections(
        _integers(columns["image_id"]),
        _integers(columns["category_id"]),
        _boxes(columns["bbox"]),
        _numbers(columns["score"]),
    )


def placed(
    ground_truth: GroundTruth, detections: Detections, *, source: str = "detections"
) -> tuple[np.ndarray, np.ndarray]:
    """The places (D,) of the detections' images and classes in the ground truth's ids.

    Raises:
        EvaluationError: an image or category is not in the ground truth.
    """
    return (
        places(ground_truth.image_ids, detections.image_ids, "image_id", source),
        places(ground_truth.category_ids, detections.category_ids, "category_id", source),
    )


def places(ids: np.ndarray, wanted: np.ndarray, key: str, where: str) -> np.ndarray:
    """Where each of `wanted` (N,) stands in rising `ids`.

    Raises:
        EvaluationError: one is not there.
    """
    found = np.searchsorted(ids, wanted)
    is_known = np.append(ids, 0)[found] == wanted
    is_known &= found < len(ids)
    if not is_known.all():
        position = int(np.argmin(is_known))
        place = {"image_id": "images", "category_id": "categories"}[key]
        raise EvaluationError(
            f"{where}[{position}]: {key} {wanted[position]} is not in the ground truth's {place}"
        )
    return found


class _Odd(ValueError):
    """A column holds what it must not; which entry does is not known here."""


_ODD = (TypeError, ValueError, KeyError, OverflowError, AttributeError)


def _integers(values: list[Any]) -> np.ndarray:
    if not all(issubclass(kind, int) and kind is not bool for kind in set(map(type, values))):
        raise _Odd
    return np.array(values, dtype=np.int64)


def _numbers(values: list[Any]) -> np.ndarray:
    kinds = set(map(type, values))
    if not all(issubclass(kind, int | float) and kind is not bool for kind in kinds):
        raise _Odd
    numbers = np.array(values, dtype=np.float64)
    if not (np.abs(numbers) <= LARGEST).all():  # False for nan
        raise _Odd
    return numbers


def _boxes(values: list[Any]) -> np.ndarray:
    if not set(map(type, values)) <= {list, tuple} or not set(map(len, values)) <= {4}:
        raise _Odd
    boxes = _numbers(list(chain.from_iterable(values))).reshape(-1, 4)
    if (boxes[:, 2:] < 0).any():
        raise _Odd
    return boxes
