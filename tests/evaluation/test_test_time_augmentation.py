"""Test detection at several sizes and on mirrored images, with a detector of known answers."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from detector.evaluation.test_time_augmentation import AtSizes


class KnownDetector(nn.Module):
    """A detector that returns a given answer for each size, plain or mirrored.

    An image counts as mirrored if its left pixel is brighter than its right one.

    Args:
        answers: size, and True if mirrored -> list of (x1, y1, x2, y2, score, label).
    """

    def __init__(self, answers: dict[tuple[int, bool], list[tuple]]) -> None:
        super().__init__()
        self.answers = answers
        self.transform = SimpleNamespace(min_size=(100,), max_size=150)
        self.roi_heads = SimpleNamespace(detections_per_img=3)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        (size,) = self.transform.min_size
        self.sizes.append((size, self.transform.max_size))
        results = []
        for image in images:
            is_mirrored = bool(image[0, 0, 0] > image[0, 0, -1])
            rows = torch.tensor(self.answers[size, is_mirrored]).reshape(-1, 6)
            labels = rows[:, 5].long()
            results.append({"boxes": rows[:, :4], "scores": rows[:, 4], "labels": labels})
        return results


IMAGE = torch.linspace(0, 1, 200).expand(3, 80, 200)  # 200 wide, brighter to the right


def rows_of(result: dict[str, Tensor]) -> list[tuple]:
    return [
        (*box, round(score, 4), label)
        for box, score, label in zip(
            *(result[key].tolist() for key in ("boxes", "scores", "labels")), strict=True
        )
    ]


def test_one_size_is_the_models_own_answer() -> None:
    # Two boxes of one class at the same place, not sorted: a single pass is not suppressed again.
    answer = [(10.0, 10.0, 50.0, 50.0, 0.5, 1), (10.0, 10.0, 50.0, 50.0, 0.75, 1)] * 2
    model = KnownDetector({(100, False): answer})
    assert rows_of(AtSizes(model, min_sizes=[100], flip=False)([IMAGE])[0]) == answer
    assert model.sizes == [(100, 150)]


def test_boxes_of_a_mirrored_image_are_mirrored_back() -> None:
    model = KnownDetector({(100, False): [], (100, True): [(10.0, 5.0, 30.0, 60.0, 0.5, 2)]})
    (result,) = AtSizes(model, min_sizes=[100], flip=True)([IMAGE])
    assert rows_of(result) == [(170.0, 5.0, 190.0, 60.0, 0.5, 2)]  # 200 - 30, 200 - 10


def test_each_image_by_its_own_width() -> None:
    model = KnownDetector({(100, False): [], (100, True): [(10.0, 5.0, 30.0, 60.0, 0.5, 2)]})
    results = AtSizes(model, min_sizes=[100], flip=True)([IMAGE, IMAGE[:, :, 50:]])
    assert [rows_of(result)[0][0] for result in results] == [170.0, 120.0]


def test_sizes_are_merged_by_class_and_score() -> None:
    """Boxes are 40 high. The IoU of (0..40) and (0..50) is 0.8, of (0..40) and (25..65) 15 / 65."""
    model = KnownDetector(
        {
            (50, False): [(0.0, 0.0, 40.0, 40.0, 0.5, 1), (100.0, 0.0, 140.0, 40.0, 0.25, 1)],
            (200, False): [
                (0.0, 0.0, 50.0, 40.0, 0.75, 1),  # the same object with a higher score
                (0.0, 0.0, 40.0, 40.0, 0.375, 2),  # another class
                (25.0, 0.0, 65.0, 40.0, 0.625, 2),  # another place
            ],
        }
    )
    (result,) = AtSizes(model, min_sizes=[50, 200], flip=False)([IMAGE])
    assert rows_of(result) == [
        (0.0, 0.0, 50.0, 40.0, 0.75, 1),
        (25.0, 0.0, 65.0, 40.0, 0.625, 2),
        (0.0, 0.0, 40.0, 40.0, 0.375, 2),
    ]  # the three that the model allows; 0.25 would be the fourth
    assert model.sizes == [(50, 75), (200, 300)]  # the longer side in proportion
    assert model.transform.min_size == (100,) and model.transform.max_size == 150


def test_the_threshold_is_one_half() -> None:
    # All are 40 high. The IoU of (0..40) and (0..76) is 40 / 76 = 0.526, with (0..84) it is 0.476.
    close = {(100, False): [(0.0, 0.0, 40.0, 40.0, 0.5, 1)]}
    for width, num_left in ((76.0, 1), (84.0, 2)):
        model = KnownDetector(close | {(120, False): [(0.0, 0.0, width, 40.0, 0.25, 1)]})
        (result,) = AtSizes(model, min_sizes=[100, 120], flip=False)([IMAGE])
        assert len(result["boxes"]) == num_left


def test_the_size_is_put_back_after_an_error() -> None:
    model = KnownDetector({})
    with pytest.raises(KeyError):
        AtSizes(model, min_sizes=[70], flip=False)([IMAGE])
    assert model.transform.min_size == (100,) and model.transform.max_size == 150


@pytest.mark.parametrize("min_sizes", [[], [0], [600, -1]])
def test_impossible_sizes(min_sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        AtSizes(KnownDetector({}), min_sizes=min_sizes, flip=True)
