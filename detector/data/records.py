"""From objects as a file lists them to one `Record` an image: the rules for every box.

A box may stick out of its image by one pixel, as rounding and 0-based VOC files make it: it is
clipped. A box further out belongs to another image or another resolution: an error. A box without
area is left out. What was clipped and what was left out is counted.

N: objects of the whole data set. Sizes are (h, w), boxes xyxy in pixels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detector.data.dataset import DetectionDataset, Record
from detector.data.errors import DatasetError

TOLERANCE = 1.0  # pixels
MAX_LENGTH = 2**31 - 1  # pixels of a side of an image, as PNG has it


class ImageEntry(NamedTuple):
    """An image as its file describes it."""

    image_id: int
    path: Path
    height: int
    width: int


class ObjectEntry(NamedTuple):
    """An object as its file describes it."""

    image_index: int
    box: tuple[float, float, float, float]  # xyxy, not yet checked
    label: int
    area: float | None  # None: that of the box
    iscrowd: bool


def build_dataset(
    *,
    images: Sequence[ImageEntry],
    objects: Sequence[ObjectEntry],
    classes: tuple[str, ...],
    category_ids: tuple[int, ...],
    name: Callable[[int], str],
) -> DetectionDataset:
    """The dataset of these images, each with its objects in their order.

    Args:
        name: file and object of an index into `objects`; opens the message of an error.

    Raises:
        DatasetError: a box is not finite, or reaches outside its image.
    """
    image_index = np.array([entry.image_index for entry in objects], dtype=np.int64)
    boxes = np.array([entry.box for entry in objects], dtype=np.float64).reshape(-1, 4)
    sizes = np.array([(entry.height, entry.width) for entry in images], dtype=np.float64)
    _refuse_unfit(boxes, sizes[image_index], name)

    fitted = _clip(boxes, sizes[image_index])
    moved = (fitted.astype(np.float32) != boxes.astype(np.float32)).any(axis=1)
    keep = _has_area(fitted.astype(np.float32))
    records = _group(images, objects, fitted, np.flatnonzero(keep))
    return DetectionDataset(
        records=records,
        classes=classes,
        category_ids=category_ids,
        num_dropped={"box without area": int((~keep).sum())},
        num_clipped=int((moved & keep).sum()),
    )


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(boxes, 0, sizes[:, [1, 0, 1, 0]])
    return clipped


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _refuse_unfit(boxes: np.ndarray, sizes: np.ndarray, name: Callable[[int], str]) -> None:
    for index in np.flatnonzero(~np.isfinite(boxes).all(axis=1)).tolist():
        raise DatasetError(f"{name(index)}: box {boxes[index].tolist()} (xyxy) is not finite")
    inside = _clip(boxes, sizes)
    sticks_out = (np.abs(boxes - inside) > TOLERANCE).any(axis=1)
    nothing_inside = _has_area(boxes) & ~_has_area(inside)
    for index in np.flatnonzero(sticks_out | nothing_inside).tolist():
        height, width = sizes[index].astype(int)
        raise DatasetError(
            f"{name(index)}: box {boxes[index].tolist()} (xyxy) reaches outside its image, "
            f"which is {width}x{height} pixels"
        )


def _group(
    images: Sequence[ImageEntry],
    objects: Sequence[ObjectEntry],
    fitted: np.ndarray,
    kept: np.ndarray,
) -> list[Record]:
    """One record an image, its objects being slices of arrays over the whole data set."""
    image_index = np.array([objects[i].image_index for i in kept], dtype=np.int64)
    by_image = np.argsort(image_index, kind="stable")
    kept, boxes = kept[by_image], fitted[kept[by_image]]
    labels = np.array([objects[i].label for i in kept], dtype=np.int64)
    iscrowd = np.array([objects[i].iscrowd for i in kept], dtype=bool)
    given = np.array([objects[i].area for i in kept], dtype=np.float64)  # None becomes nan
    area = np.where(np.isnan(given), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), given)

    ends = np.cumsum(np.bincount(image_index, minlength=len(images)))
    records = []
    for entry, start, end in zip(images, [0, *ends[:-1]], ends, strict=True):
        rows = slice(start, end)
        records.append(
            Record(
                image_id=entry.image_id,
                path=entry.path,
                height=entry.height,
                width=entry.width,
                boxes=boxes[rows],
                labels=labels[rows],
                area=area[rows],
                iscrowd=iscrowd[rows],
            )
        )
    return records
