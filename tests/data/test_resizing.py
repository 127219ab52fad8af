"""Tests of the words for how far the resize enlarges or reduces images."""

from pathlib import Path

import numpy as np
import pytest

from detector.data.dataset import DetectionDataset, Record
from detector.data.resizing import resize_factors, resize_words


def images(*sizes: tuple[int, int]) -> DetectionDataset:
    """Return a data set of images of these sizes (h, w), without objects."""
    records = [
        Record(
            image_id=index,
            path=Path(f"{index}.jpg"),
            height=height,
            width=width,
            boxes=np.zeros((0, 4)),
            labels=np.zeros(0, dtype=np.int64),
            area=np.zeros(0),
            iscrowd=np.zeros(0, dtype=bool),
        )
        for index, (height, width) in enumerate(sizes)
    ]
    return DetectionDataset(records=records, classes=("cat",), category_ids=(1,))


def test_factors() -> None:
    sizes = np.array([[200, 320], [100, 400], [1600, 800]])
    # 800 / 200 = 4; the limit of 1000 for the longer side: 1000 / 400 = 2.5 and 1000 / 1600.
    factors = resize_factors(sizes, min_size=800, max_size=1000)
    assert factors.tolist() == [1000 / 320, 2.5, 0.625]
    assert resize_factors(sizes, min_size=800, max_size=9999).tolist() == [4, 8, 1]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([(200, 240), (320, 320)], "enlarged 2.5 to 4 times"),
        ([(200, 240)], "enlarged 4 times"),
        ([(800, 800), (1600, 1600)], "scaled by 0.5 to 1"),
        ([(400, 400), (1200, 1200)], "scaled by 0.667 to 2"),
        ([(1600, 1600)], "scaled by 0.5"),
        ([(800, 1000)], "they have that size"),
    ],
)
def test_words(sizes: list[tuple[int, int]], words: str) -> None:
    (line,) = resize_words(
        {"val": images(*sizes)}, train_min_sizes=[9], min_size=800, max_size=1333
    )
    assert line == (
        "val: images are resized so that their shorter side is 800 pixels and their longer side "
        f"at most 1333: {words}"
    )


def test_training_has_sizes_of_its_own() -> None:
    """A size is drawn for each image: the smallest and the largest give the range."""
    splits = {"train": images((100, 100), (200, 200)), "val": images((100, 100))}
    train, val = resize_words(splits, train_min_sizes=[600, 400], min_size=500, max_size=1000)
    assert "shorter side is 400 to 600 pixels" in train and "enlarged 2 to 6 times" in train
    assert "shorter side is 500 pixels" in val and "enlarged 5 times" in val
