"""Reads the box and the area of a COCO-format object.

A box in the file is (x, y, w, h) in pixels. It is returned as (x1, y1, x2, y2).
"""

import math
import reprlib
from pathlib import Path

from detector.data.errors import DatasetError, Faults
from detector.data.json_fields import Json, field
from detector.data.masks import Box, box_around_rotated, box_of_mask
from detector.data.values import as_four_numbers, as_number


def read_box(entry: Json, place: str, size: tuple[int, int], faults: Faults) -> Box:
    """Return the box (xyxy, in pixels) of an object, not yet clipped unless it is rotated.

    Without a box, or with one of zeros, the box around the object's mask is taken.

    Args:
        place: the place of the object in the file, with which every message begins.
        size: (h, w) of the image.

    Raises:
        DatasetError: the box is missing or does not have four numbers, and there is no valid mask.
    """
    given = entry.get("bbox")
    is_missing = not given or as_four_numbers(given) == [0, 0, 0, 0]  # also null or empty
    if is_missing and entry.get("segmentation"):
        box = box_of_mask(entry["segmentation"], size)
        if box is None:
            raise DatasetError(
                f"{place}: has no 'bbox', and its 'segmentation' is not a valid mask of its image"
            )
        faults.accepted("mask without a box", f"{place}: its mask's bounding box is used")
        return box
    bbox = as_four_numbers(given)
    if bbox is None:
        bbox = field(entry, "bbox", list, place)
        raise DatasetError(
            f"{place}: 'bbox' is {reprlib.repr(bbox)}, expected 4 numbers x, y, w, h"
        )
    if given != bbox:
        faults.accepted("box as text", f"{place}: 'bbox' is {reprlib.repr(given)}")
    x, y, w, h = bbox
    attributes = entry.get("attributes")
    rotation = as_number(attributes.get("rotation")) if type(attributes) is dict else None
    if rotation:  # CVAT writes the box before its rotation, and the angle in degrees
        faults.accepted("rotated box", f"{place}: the upright box around it is used")
        centre = (x + w / 2, y + h / 2)
        return box_around_rotated(*centre, w, h, math.radians(rotation), size)
    return x, y, x + w, y + h


def read_area(entry: Json, place: str) -> float | None:
    """Return the area of an object in square pixels, or None if the file does not give it.

    Raises:
        DatasetError: it is not a number from 0 to below 2**63.
    """
    area = entry.get("area")
    if area is None:
        return None
    value = as_number(area)
    if value is None or not 0 <= value < 2**63:
        raise DatasetError(
            f"{place}: 'area' is {reprlib.repr(area)}, expected square pixels, 0 or more"
        )
    return value


def refuse_corner_boxes(content: Json, file: Path) -> None:
    """Refuse a file whose boxes are written as two corners, which the `area` of objects reveals.

    Raises:
        DatasetError: the area fits two corners and not (x, y, w, h) for at least two objects and
            90% of those that have an area and no mask. A single object proves nothing: an area
            that is measured inside an outline may fit two corners by chance.
    """
    corners = total = 0
    objects = content.get("annotations")
    for entry in objects if type(objects) is list else ():
        if type(entry) is not dict or entry.get("segmentation"):  # the area is the mask's
            continue
        box, area = as_four_numbers(entry.get("bbox")), as_number(entry.get("area"))
        if box is None or area is None:
            continue
        total += 1
        x, y, w, h = box
        fits = w > x and h > y and abs(area - (w - x) * (h - y)) <= 0.01 * area
        corners += fits and abs(area - w * h) > 0.01 * area
    if corners > 1 and corners >= 0.9 * total:
        raise DatasetError(
            f"{file}: the 'area' of {corners} objects shows that their 'bbox' holds two corners "
            "(x1, y1, x2, y2), expected x, y, width, height: convert the boxes"
        )
