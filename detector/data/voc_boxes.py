"""Reads the box of a VOC-format object: a `<bndbox>`, a rotated box, or a polygon.

Pixels are counted from 1 in the file, and the pixels at xmax and ymax belong to the box. It is
returned as (xmin - 1, ymin - 1, xmax, ymax).
"""

import math
from xml.etree.ElementTree import Element

from detector.data.errors import DatasetError, Faults
from detector.data.masks import Box, box_around_rotated, clip_box
from detector.data.records import ImageEntry
from detector.data.xml_fields import number_field, parse_number


def read_box(element: Element, place: str, image: ImageEntry, faults: Faults) -> Box:
    """Return the box, xyxy counted from 0, of a `<bndbox>`, or around a rotated box or polygon.

    Raises:
        DatasetError: an `<object>` has no box or several, or a coordinate is not a number.
    """
    size = (image.height, image.width)
    if element.find("bndbox") is None:
        for shape, around in (("robndbox", _around_rotated), ("polygon", _around_polygon)):
            if element.find(shape) is not None:
                faults.accepted(f"<{shape}>", f"{place}: the upright box around it is used")
                return around(element, place, size)
    if len(element.findall("bndbox")) > 1:
        raise DatasetError(f"{place}: has {len(element.findall('bndbox'))} <bndbox>, expected one")
    x1, y1, x2, y2 = (
        number_field(element, f"bndbox/{key}", place) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    if x1 - 1 > x2 or y1 - 1 > y2:  # a box thinner than a pixel has x1 - 1 <= x2 < x1
        detail = f"{place}: box [{x1:g}, {y1:g}, {x2:g}, {y2:g}] has its corners swapped"
        faults.warning("corners in another order", detail, image.image_id)
        x1, x2 = sorted((x1, x2))
        y1, y2 = sorted((y1, y2))
    rotation = _rotation(element, place)
    if rotation:
        faults.accepted("rotated box", f"{place}: the upright box around it is used")
        sides = (x2 - x1 + 1, y2 - y1 + 1)
        centre = ((x1 - 1 + x2) / 2, (y1 - 1 + y2) / 2)
        return box_around_rotated(*centre, *sides, math.radians(rotation), size)
    return x1 - 1, y1 - 1, x2, y2


def _rotation(element: Element, place: str) -> float:
    """Return CVAT's attribute "rotation" in degrees; CVAT writes the box before its rotation."""
    for attribute in element.iterfind("attributes/attribute"):
        if (attribute.findtext("name") or "").strip() == "rotation":
            return number_field(attribute, "value", place)
    return 0.0


def _around_rotated(element: Element, place: str, size: tuple[int, int]) -> Box:
    """Return the box around roLabelImg's `<robndbox>`: centre, sides and an angle in radians."""
    cx, cy, width, height, angle = (
        number_field(element, f"robndbox/{key}", place) for key in ("cx", "cy", "w", "h", "angle")
    )
    if abs(angle) > 2 * math.pi:
        raise DatasetError(
            f"{place}: <angle> is {angle:g}, expected radians of at most a full turn"
        )
    return box_around_rotated(cx, cy, width, height, angle, size)


def _around_polygon(element: Element, place: str, size: tuple[int, int]) -> Box:
    """Return the box around a polygon of <x1> <y1> <x2> ... or of <pt> with <x> and <y>."""
    numbers: dict[str, list[float]] = {"x": [], "y": []}
    for node in element.iterfind("polygon//*"):
        axis = node.tag[:1]
        if axis in numbers and (node.tag[1:] == "" or node.tag[1:].isdecimal()):
            numbers[axis].append(parse_number(node.text or "", f"polygon/{node.tag}", place))
    if not numbers["x"] or not numbers["y"]:
        raise DatasetError(f"{place}: <polygon> has no points <x1>, <y1> or <pt>")
    low = min(numbers["x"]), min(numbers["y"])
    return clip_box((*low, max(numbers["x"]), max(numbers["y"])), size)
