"""The manual's picture of a deformable convolution is the one that the code draws."""

from math import dist
from pathlib import Path
from xml.etree import ElementTree

from detector.analysis.figure import figure, taps

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_picture_is_up_to_date() -> None:
    drawn = figure()
    ElementTree.fromstring(drawn)  # well-formed
    assert (ROOT / "docs" / "deformable_convolution.svg").read_text() == drawn
    assert "deformable_convolution.svg" in (ROOT / "docs" / "operators.md").read_text()


def test_taps_start_on_the_grid_and_move() -> None:
    places, moved = zip(*taps(), strict=True)
    assert places[0] == (3.5, 3.5) and places[5] == (5.5, 4.5)  # row-major, (x, y)
    assert dist(places[4], moved[4]) < 1e-12 and dist(places[0], moved[0]) > 1
