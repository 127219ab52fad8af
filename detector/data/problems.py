"""Finds problems in the annotations of data sets, without opening image files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detector.data.dataset import DetectionDataset, Record
from detector.data.errors import printable
from detector.data.resizing import image_sizes, resize_factors

TINY = 4.0  # pixels after the resize; the stride of the finest feature map
Splits = Mapping[str, DetectionDataset]


class Problem(NamedTuple):
    """One problem of a data set, with its place."""

    severity: str  # "error" or "warning"
    split: str
    kind: str
    detail: str
    file: str | None = None
    image_id: int | None = None


def objects_by_class(dataset: DetectionDataset) -> np.ndarray:
    """Return the number of objects of each class, (K,), including crowds."""
    labels = [np.zeros(0, dtype=np.int64), *(record.labels for record in dataset.records)]
    return np.bincount(np.concatenate(labels) - 1, minlength=len(dataset.classes))


def annotation_problems(splits: Splits, *, min_size: int, max_size: int) -> list[Problem]:
    """Return the faults that the readers found, and unusual images and objects.

    Args:
        splits: the data sets by the name of their split.
        min_size: length in pixels of an image's shorter side after the resize.
        max_size: upper limit in pixels of the longer side, which takes precedence.
    """
    problems = []
    for split, dataset in splits.items():
        problems += [
            Problem(fault.severity, split, fault.kind, fault.detail, None, fault.image_id)
            for fault in dataset.faults
        ]
        problems += _listed_twice(split, dataset.records)
        if split == "train" and all(record.iscrowd.all() for record in dataset.records):
            problems.append(Problem("error", split, "nothing to train on", "no object is a target"))
        for name, number in zip(dataset.classes, objects_by_class(dataset), strict=True):
            if number == 0:
                problems.append(Problem("warning", split, "class without objects", printable(name)))
        for index, kind, detail in _warnings_of_objects(dataset.records, min_size, max_size):
            problems.append(
                problem_of_image("warning", split, kind, detail, dataset.records[index])
            )
    return problems


def _listed_twice(split: str, records: list[Record]) -> Iterator[Problem]:
    first: dict[Path, Record] = {}
    for record in records:
        twin = first.setdefault(record.path, record)
        if twin is not record:
            detail = f"the same file as that of image id {twin.image_id}"
            yield problem_of_image("warning", split, "image listed twice", detail, record)


def _warnings_of_objects(
    records: list[Record], min_size: int, max_size: int
) -> Iterator[tuple[int, str, str]]:
    """Yield the image index, kind and detail of each warning about objects.

    For speed, the N objects of all images are processed as arrays.
    """
    numbers = np.array([len(record.boxes) for record in records])
    for index in np.flatnonzero(numbers == 0).tolist():
        yield index, "image without objects", "no object"
    if not numbers.any():
        return
    image = np.repeat(np.arange(len(records)), numbers)  # (N,)
    boxes = np.concatenate([record.boxes for record in records])
    labels = np.concatenate([record.labels for record in records])

    order = np.lexsort((*boxes.T, labels, image))
    rows = np.column_stack([image, labels, boxes])[order]
    starts = np.flatnonzero(np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)])
    times = np.diff(np.r_[starts, len(rows)])
    for start, number in zip(starts[times > 1].tolist(), times[times > 1].tolist(), strict=True):
        box = rows[start, 2:].tolist()
        detail = f"box {box} (xyxy) is annotated {number} times with the same class"
        yield int(rows[start, 0]), "duplicate box", detail

    scale = resize_factors(image_sizes(records), min_size=min_size, max_size=max_size)
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) * scale[image]
    is_target = ~np.concatenate([record.iscrowd for record in records])
    tiny = np.bincount(image[(shorter < TINY) & is_target], minlength=len(records))
    for index in np.flatnonzero(tiny).tolist():
        detail = f"objects less than {TINY:g} pixels wide or high after the resize: {tiny[index]}"
        yield index, "tiny object", detail


def problem_of_image(severity: str, split: str, kind: str, detail: str, record: Record) -> Problem:
    return Problem(severity, split, kind, detail, str(record.path), record.image_id)
