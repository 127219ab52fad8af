"""Tests of the boxes of COCO-format objects: (x, y, w, h) is read as corners, or refused."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.data.coco_boxes import read_area, read_box, refuse_corner_boxes
from detector.data.errors import DatasetError, Faults

WIDTH, HEIGHT = 40, 30


def read(**entry: Any) -> tuple[list[float], list[str]]:
    """Return the box of an object, and the kinds of the deviations that were accepted."""
    faults = Faults("stop")
    box = read_box(entry, "gt.json: annotations[0] (id 1)", (HEIGHT, WIDTH), faults)
    return list(box), [fault.kind for fault in faults.found]


def test_corners() -> None:
    assert read(bbox=[2, 3, 10.5, 8]) == ([2, 3, 12.5, 11], [])


@pytest.mark.parametrize("bbox", [["2", "3.0", 10, "8"], "[2, 3, 10, 8]", "2 3 10 8"])
def test_boxes_as_text(bbox: Any) -> None:
    assert read(bbox=bbox) == ([2, 3, 12, 11], ["box as text"])


@pytest.mark.parametrize("bbox", [[1, 2, 3], "1 2 3 x", [1, 2, 3, True], None])
def test_boxes_without_four_numbers(bbox: Any) -> None:
    with pytest.raises(DatasetError, match=r"annotations\[0\] \(id 1\): 'bbox' is "):
        read(bbox=bbox)


def test_masks_without_a_box() -> None:
    """The same rectangle as polygons and as both forms of run lengths."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[3:11, 2:12] = 1
    runs = coco_mask.encode(mask)
    runs["counts"] = runs["counts"].decode()
    column = mask.T.flatten()
    changes = np.flatnonzero(np.diff(column)) + 1
    lengths = np.diff([0, *changes, len(column)]).tolist()
    for segmentation in (
        [[2, 3, 12, 3, 12, 11, 2, 11]],
        [[2, 3, 12, 3, 2, 11], [12, 3, 12, 11, 2, 11]],
        runs,
        {"counts": lengths, "size": [HEIGHT, WIDTH]},
    ):
        assert read(segmentation=segmentation) == ([2, 3, 12, 11], ["mask without a box"])
    for odd in (
        [[1, 2, "x"]],
        {"counts": [1, 2], "size": [0, 5]},  # would crash the process in pycocotools
        {"counts": [1, 2], "size": [HEIGHT, WIDTH]},
        {"counts": lengths, "size": [WIDTH, HEIGHT]},
        runs | {"size": [2 * HEIGHT, WIDTH]},
    ):
        with pytest.raises(DatasetError, match="'segmentation' is not a valid mask of its image"):
            read(segmentation=odd)


def test_a_box_of_zeros_beside_a_mask() -> None:
    box, kinds = read(bbox=[0, 0, 0, 0], segmentation=[[2, 3, 12, 3, 12, 11]])
    assert box == [2, 3, 12, 11] and kinds == ["mask without a box"]


def test_a_rotated_box_of_cvat() -> None:
    """CVAT writes the box before its rotation; it is read as the upright box around, clipped."""
    box, kinds = read(bbox=[3, 2, 8, 10], attributes={"rotation": 90.0})
    np.testing.assert_allclose(box, [2, 3, 12, 11], atol=1e-9)
    assert kinds == ["rotated box"]
    box, _ = read(bbox=[0, 0, 10, 4], attributes={"rotation": -90})
    np.testing.assert_allclose(box, [3, 0, 7, 7], atol=1e-9)


def test_area() -> None:
    assert read_area({}, "here") is None
    assert read_area({"area": "12.5"}, "here") == 12.5
    with pytest.raises(DatasetError, match="here: 'area' is -1, expected square pixels"):
        read_area({"area": -1}, "here")


def test_boxes_of_two_corners(tmp_path: Any) -> None:
    corners = [{"bbox": [2, 3, 12, 11], "area": 80}, {"bbox": [4, 5, 10, 12], "area": 42}]
    with pytest.raises(DatasetError, match=r"'area' of 2 objects .* two corners"):
        refuse_corner_boxes({"annotations": corners}, tmp_path / "gt.json")
    outline = {"bbox": [2, 3, 10, 8], "area": 31.5}  # its area may fit two corners by chance
    refuse_corner_boxes({"annotations": [*corners, outline, outline]}, tmp_path / "gt.json")
