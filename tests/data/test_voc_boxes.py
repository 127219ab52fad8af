"""Tests of the boxes of VOC-format objects: `<bndbox>`, rotated boxes and polygons."""

from pathlib import Path

import numpy as np
import pytest
from defusedxml.ElementTree import fromstring

from detector.data.errors import DatasetError, Faults
from detector.data.records import ImageEntry
from detector.data.voc_boxes import read_box

IMAGE = ImageEntry(7, Path("a.jpg"), height=30, width=40)
BOX = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>11</ymax></bndbox>"


def read(xml: str) -> tuple[list[float], Faults]:
    faults = Faults("stop")
    element = fromstring(f"<object>{xml}</object>")
    return list(read_box(element, "a.xml: object 1", IMAGE, faults)), faults


def test_pixels_are_counted_from_1() -> None:
    box, faults = read(BOX)
    assert box == [2, 3, 12, 11] and faults.found == []


@pytest.mark.parametrize(
    ("xml", "kind"),
    [
        (
            "<polygon><x1>2</x1><y1>3</y1><x2>12</x2><y2>5</y2><x3>7</x3><y3>11</y3></polygon>",
            "<polygon>",
        ),
        (
            "<polygon><pt><x>2</x><y>3</y></pt><pt><x>12</x><y>11</y></pt></polygon>",
            "<polygon>",
        ),
        (
            "<robndbox><cx>7</cx><cy>7</cy><w>8</w><h>10</h><angle>1.5707963267948966</angle>"
            "</robndbox>",
            "<robndbox>",
        ),
        (
            "<bndbox><xmin>12</xmin><ymin>11</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>",
            "corners in another order",
        ),
        (
            "<bndbox><xmin>4</xmin><ymin>3</ymin><xmax>11</xmax><ymax>12</ymax></bndbox>"
            "<attributes><attribute><name>rotation</name><value>90</value></attribute>"
            "</attributes>",
            "rotated box",
        ),
    ],
)
def test_other_shapes(xml: str, kind: str) -> None:
    box, faults = read(xml)
    np.testing.assert_allclose(box, [2, 3, 12, 11], atol=1e-9)
    assert [fault.kind for fault in faults.found] == [kind]


def test_swapped_corners_name_their_image() -> None:
    _, faults = read("<bndbox><xmin>12</xmin><ymin>4</ymin><xmax>3</xmax><ymax>11</ymax></bndbox>")
    (fault,) = faults.found
    assert fault.image_id == 7 and "box [12, 4, 3, 11]" in fault.detail


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (2 * BOX, "has 2 <bndbox>, expected one"),
        ("", "<bndbox/xmin> is missing or empty"),
        ("<polygon/>", "<polygon> has no points"),
        (
            "<robndbox><cx>7</cx><cy>7</cy><w>8</w><h>10</h><angle>90</angle></robndbox>",
            "<angle> is 90, expected radians",
        ),
    ],
)
def test_what_is_refused(xml: str, words: str) -> None:
    with pytest.raises(DatasetError, match=f"a.xml: object 1: {words}"):
        read(xml)
