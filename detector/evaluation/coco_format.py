"""Conversion of COCO-format content to columns, with checks.

A column is checked as a whole. Only if this check fails are the entries checked one by one, to name
the invalid one.

Ground truth is a dictionary of three lists, detections are one list:

    images       [{id, ...}]
    annotations  [{image_id, category_id, bbox, area, iscrowd}]
    categories   [{id, name}]

    detections   [{image_id, category_id, bbox, score}]

A bbox is [x, y, width, height] in pixels, an area is in square pixels. An annotation with `iscrowd`
1 is ignored when detections are scored, see `columns.py`.

G: annotations;  D: detections.
"""

import reprlib
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from detector.evaluation.columns import Detections, GroundTruth, indices_of
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


def as_ground_truth(dataset: Any, *, source: str = "ground truth") -> GroundTruth:
    """Convert COCO-format content to columns. A `GroundTruth` is returned unchanged.

    A missing `iscrowd` becomes 0, and a missing `area` becomes the area of the box. The ids of
    annotations are left out, because no metric depends on them.

    Args:
        dataset: COCO-format content as `json.load` returns it; it is not changed.
        source: the name of the content in error messages, such as its file.

    Raises:
        EvaluationError: a key is missing; a value is of a wrong type or not finite; an image id, a
            category id or a category name appears twice; or an annotation is of an unknown image
            or category.
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
    """Build the columns of the ground truth from lists of the values of its entries.

    Args:
        images, categories: COCO-format entries.
        annotations: a list (G,) for each of image_id, category_id, bbox, area and iscrowd. A
            missing area or iscrowd is None.
        check: called if a column of annotations is invalid, to raise an error that names the
            entry. If it returns, the error of the column is raised.
        source: the name of the content in error messages.

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
            raise _InvalidColumn
    except _INVALID:
        check()
        raise
    where = f"{source}: annotations"
    return GroundTruth(
        image_ids,
        category_ids,
        tuple(category["name"] for category in categories),
        indices_of(image_ids, image_column, "image_id", where),
        indices_of(category_ids, category_column, "category_id", where),
        boxes,
        areas,
        is_crowd,
        [dict(image) for image in images],
    )


def as_detections(entries: Any, *, source: str = "detections") -> Detections:
    """Convert COCO-format results to columns. `Detections` are returned unchanged.

    Args:
        entries: a list of results, which may be empty; it is not changed.
        source: the name of the results in error messages, such as their file.

    Raises:
        EvaluationError: a key is missing, a value is of a wrong type or not finite, or a box has a
            negative width or height.
    """
    if isinstance(entries, Detections):
        return entries
    if not isinstance(entries, list):
        raise EvaluationError(f"{source}: expected a list, got {reprlib.repr(entries)}")
    try:
        return detections_of({key: [entry[key] for entry in entries] for key in DETECTION})
    except _INVALID:
        for position, entry in enumerate(entries):
            check_keys(entry, DETECTION, f"{source}[{position}]")
        raise


def detections_of(columns: dict[str, list[Any]]) -> Detections:
    """Build detections from lists (D,) under the keys image_id, category_id, bbox and score.

    Raises:
        TypeError, ValueError, OverflowError: a value is not what COCO's format allows.
    """
    return Detections(
        _integers(columns["image_id"]),
        _integers(columns["category_id"]),
        _boxes(columns["bbox"]),
        _numbers(columns["score"]),
    )


class _InvalidColumn(ValueError):
    """Raised for a column with an invalid value, without knowing which entry it is from."""


_INVALID = (TypeError, ValueError, KeyError, OverflowError, AttributeError)


def _integers(values: list[Any]) -> np.ndarray:
    if not all(issubclass(kind, int) and kind is not bool for kind in set(map(type, values))):
        raise _InvalidColumn
    return np.array(values, dtype=np.int64)


def _numbers(values: list[Any]) -> np.ndarray:
    kinds = set(map(type, values))
    if not all(issubclass(kind, int | float) and kind is not bool for kind in kinds):
        raise _InvalidColumn
    numbers = np.array(values, dtype=np.float64)
    if not (np.abs(numbers) <= LARGEST).all():  # False for nan
        raise _InvalidColumn
    return numbers


def _boxes(values: list[Any]) -> np.ndarray:
    if not set(map(type, values)) <= {list, tuple} or not set(map(len, values)) <= {4}:
        raise _InvalidColumn
    boxes = _numbers(list(chain.from_iterable(values))).reshape(-1, 4)
    if (boxes[:, 2:] < 0).any():
        raise _InvalidColumn
    return boxes
