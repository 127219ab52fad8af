"""Pictures of an evaluation, by the pixels that must be there."""

import numpy as np
import pytest
from PIL import Image

from detector.analysis.curves import bars, heat_map, precision_recall
from detector.evaluation.coco import Curve

BLUE = (31, 95, 191)


def pixels_of(picture: Image.Image, color: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns where the picture has a colour."""
    return np.nonzero((np.asarray(picture) == color).all(axis=2))


def test_a_curve_passes_where_its_numbers_say() -> None:
    """Precision 0.75 to recall 0.4, then 0: in a plot of 500 pixels from (60, 60) on, a line 125
    below the top that ends 200 from the left, and then one along the bottom.
    """
    precision = np.where(np.arange(101) <= 40, 0.75, 0.0)
    picture = precision_recall({"cat": Curve(precision, 7)})
    plot = picture.crop((61, 55, 561, 565))  # without the legend and the tick marks
    rows, columns = pixels_of(plot, (0, 0, 0))  # the mean of one class, drawn over it
    upper = columns[rows < 250]
    assert abs(rows[columns == 100].mean() - (60 + 125 - 55)) < 2
    assert 195 <= upper.max() <= 208
    assert abs(rows[columns == 400].mean() - (60 + 500 - 55)) < 2


def test_curves_without_a_class_and_with_many() -> None:
    assert (
        precision_recall({}).size
        == precision_recall(
            {f"class {number}": Curve(np.ones(101), number) for number in range(80)}
        ).size
    )


def test_a_heat_map_is_as_dark_as_the_share_of_a_row() -> None:
    counts = np.array([[3, 0, 1], [0, 20, 0]])
    picture = heat_map(counts, ["cat", "background"], ["cat", "dog", "missed"])
    assert picture.size == (170 + 3 * 48 + 20, 170 + 2 * 48 + 20)
    corners = [
        [picture.getpixel((170 + 48 * column + 2, 170 + 48 * row + 2)) for column in range(3)]
        for row in range(2)
    ]
    # white (255, 255, 255) mixed with a blue of (31, 95, 191): 255 - 0.75 * 224 = 87 and so on
    assert corners[0] == [(87, 135, 207), (255, 255, 255), (199, 215, 239)]
    assert corners[1] == [(255, 255, 255), BLUE, (255, 255, 255)]


def test_names_of_the_columns_stand_over_them() -> None:
    counts = np.zeros((2, 2), dtype=int)
    picture = np.asarray(heat_map(counts, ["", ""], ["", "wwwwwwww"]))
    above = picture[30:165, 170 : 170 + 96]
    dark = np.nonzero((above < 100).any(axis=2))
    assert len(dark[1]) and dark[1].min() >= 48 and dark[0].max() > 120  # it ends at the cells


@pytest.mark.parametrize("num_classes", [100, 1300])
def test_a_heat_map_of_many_classes_stays_small(num_classes: int) -> None:
    names = ["name"] * num_classes
    picture = heat_map(np.eye(num_classes, dtype=int), names, names)
    assert 1300 <= picture.width <= 3300


def test_bars_are_as_long_as_their_values() -> None:
    picture = bars({"missed": 30.0, "both": 10.0, "none": 0.0, "negative": -1.0}, "AP50 gained")
    rows, _ = pixels_of(picture, BLUE)
    lengths = [int((rows == 60 + 40 * number).sum()) for number in range(4)]
    assert lengths == [300, 100, 0, 0]
    assert pixels_of(bars({"missed": 0.0}, ""), BLUE)[0].size == 0
