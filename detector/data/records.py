"""Groups the objects of an annotation file into one `Record` per image, and checks every box.

A box that reaches outside its image by at most one pixel is clipped, because rounding and 0-based
VOC files cause this. A box that reaches further out is an error, because it probably belongs to
another image or another resolution. A box without area is left out. Each case is added to the
faults of the data set.

N is the number of objects in the whole data set. Sizes are (h, w); boxes are xyxy in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detector.data.dataset import DetectionDataset, Record
from detector.data.errors import DatasetError, Faults

TOLERANCE = 1.0  # pixels by which a box may reach outside its image
MAX_LENGTH = 2**31 - 1  # the longest side of an image in pixels, which is PNG's limit


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
    area: float | None  # square pixels; None takes the area of the box
    iscrowd: bool


def build_dataset(
    *,
    images: Sequence[ImageEntry],
    objects: Sequence[ObjectEntry],
    classes: tuple[str, ...],
    category_ids: tuple[int, ...],
    name: Callable[[int], str],
    faults: Faults,
) -> DetectionDataset:
    """Build the dataset of these images, whose objects keep their order.

    Args:
        name: returns the place (file and object) of an index into `objects`, with which the
            message of a fault begins.
        faults: the faults found so far, to which those of the boxes are added.

    Raises:
        DatasetError: `faults` stops at errors, and a box is not finite or reaches outside its
            image; or all boxes look normalised to [0, 1].
    """
    image_index = np.array([entry.image_index for entry in objects], dtype=np.int64)
    boxes = np.array([entry.box for entry in objects], dtype=np.float64).reshape(-1, 4)
    sizes = np.array([(entry.height, entry.width) for entry in images], dtype=np.float64)
    of_object = sizes[image_index]
    _refuse_normalised(boxes, sizes, name)
    fitted = _clip(boxes, of_object)
    finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite and huge boxes
        inside = ~_reaches_outside(boxes, fitted)
        moved = (fitted.astype(np.float32) != boxes.astype(np.float32)).any(axis=1)
    has_area = _has_area(fitted.astype(np.float32))

    def described(indices: np.ndarray) -> Iterator[tuple[int, str, int]]:
        for index in indices.tolist():
            box = f"{name(index)}: box {boxes[index].tolist()} (xyxy)"
            yield index, box, images[image_index[index]].image_id

    for _, box, image_id in described(np.flatnonzero(~finite)):
        faults.error("box not finite", DatasetError(f"{box} is not finite"), image_id)
    for index, box, image_id in described(np.flatnonzero(finite & ~inside)):
        height, width = of_object[index].astype(int)
        message = f"{box} reaches outside its image, which is {width}x{height} pixels"
        faults.error("box outside its image", DatasetError(message), image_id)
    fit = finite & inside
    for _, box, image_id in described(np.flatnonzero(fit & ~has_area)):
        faults.warning("box without area", f"{box} has no area and is left out", image_id)
    for _, box, image_id in described(np.flatnonzero(fit & has_area & moved)):
        faults.warning("box clipped", f"{box} is clipped to its image", image_id)

    return DetectionDataset(
        records=_group(images, objects, fitted, np.flatnonzero(fit & has_area)),
        classes=classes,
        category_ids=category_ids,
        faults=tuple(faults.found),
    )


def _refuse_normalised(boxes: np.ndarray, sizes: np.ndarray, name: Callable[[int], str]) -> None:
    """Refuse boxes that are normalised to the image's size instead of being in pixels.

    Raises:
        DatasetError: all boxes lie within the first pixel of their image.
    """
    if len(boxes) and sizes.min() > 2 and (boxes <= 1).all() and (boxes[:, 2:] > 0).any():
        raise DatasetError(
            f"{name(0)}: box {boxes[0].tolist()} (xyxy), like all {len(boxes)} boxes, lies within "
            "one pixel: expected pixels, not fractions of the image's width and height"
        )


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(boxes, 0, sizes[:, [1, 0, 1, 0]])
    return clipped


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _reaches_outside(boxes: np.ndarray, clipped: np.ndarray) -> np.ndarray:
    """Return a mask (N,) of the boxes that lie outside their image.

    These exceed the tolerance, or have an area of which no part is inside the image.
    """
    sticks_out = (np.abs(boxes - clipped) > TOLERANCE).any(axis=1)
    outside: np.ndarray = sticks_out | (_has_area(boxes) & ~_has_area(clipped))
    return outside


def _group(
    images: Sequence[ImageEntry],
    objects: Sequence[ObjectEntry],
    fitted: np.ndarray,
    kept: np.ndarray,
) -> list[Record]:
    """Return one record per image, whose arrays are slices of arrays over the whole data set."""
    image_index = np.array([objects[i].image_index for i in kept], dtype=np.int64)
    by_image = np.argsort(image_index, kind="stable")
    kept, boxes = kept[by_image], fitted[kept[by_image]]
    labels = np.array([objects[i].label for i in kept], dtype=np.int64)
    iscrowd = np.array([objects[i].iscrowd for i in kept], dtype=bool)
    given = np.array([objects[i].area for i in kept], dtype=np.float64)  # None becomes NaN
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
