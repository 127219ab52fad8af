"""Computes the upright box around a COCO-format mask or around a rotated box."""

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Box = tuple[float, float, float, float]


def box_of_mask(segmentation: Any, size: tuple[int, int]) -> Box | None:
    """Return the box (xyxy, in pixels) around a COCO `segmentation`.

    Args:
        segmentation: a list of polygons [x1, y1, x2, y2, ...], or one such polygon; or a mask
            {counts, size} whose run lengths are a list or compressed to a string.
        size: (h, w) of the image.

    Returns:
        The box, or None if the segmentation is empty, malformed or not of the image's size.
    """
    try:
        if type(segmentation) is dict:
            return _of_runs(segmentation, size)
        return _of_polygons(segmentation)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return None


def box_around_rotated(
    cx: float, cy: float, width: float, height: float, angle: float, size: tuple[int, int]
) -> Box:
    """Return the upright box (xyxy, in pixels) around a rotated box, clipped to the image.

    Args:
        cx, cy: centre of the box in pixels.
        width, height: sides of the box before its rotation, in pixels.
        angle: rotation about the centre, in radians.
        size: (h, w) of the image.
    """
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    x, y = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    return clip_box((cx - x, cy - y, cx + x, cy + y), size)


def clip_box(box: Box, size: tuple[int, int]) -> Box:
    """Clip a box (xyxy) to an image of this size (h, w)."""
    x1, y1, x2, y2 = box
    height, width = size
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def _of_polygons(polygons: Any) -> Box | None:
    if polygons and not isinstance(polygons[0], list):
        polygons = [polygons]  # a single polygon without the outer list
    points = np.concatenate([np.asarray(one, dtype=np.float64).reshape(-1, 2) for one in polygons])
    if len(points) < 2 or not np.isfinite(points).all():
        return None
    x1, y1 = points.min(axis=0).tolist()
    x2, y2 = points.max(axis=0).tolist()
    return x1, y1, x2, y2


def _of_runs(runs: dict[str, Any], size: tuple[int, int]) -> Box | None:
    if tuple(runs["size"]) != size or min(size) < 1:
        return None
    counts = runs["counts"]
    if type(counts) is list:
        if sum(counts) != size[0] * size[1] or min(counts) < 0:
            return None
        runs = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    x, y, w, h = coco_mask.toBbox(runs).tolist()
    return (x, y, x + w, y + h) if w > 0 and h > 0 else None
