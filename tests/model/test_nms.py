"""Soft-NMS compared with the paper's loop in plain Python, and properties of its results."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.model.nms import non_maximum_suppression

Box = list[float]


def overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def reference(
    boxes: list[Box],
    scores: list[float],
    labels: list[int],
    *,
    method: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> list[tuple[int, float]]:
    """Follow figure 2 of Bodla et al. 2017 per class; return (index, score) by descending score."""
    found = []
    for label in set(labels):
        left = {i: scores[i] for i in range(len(boxes)) if labels[i] == label}
        while left:
            best = max(left, key=lambda i: left[i])
            found.append((best, left.pop(best)))
            for i in left:
                iou = overlap(boxes[best], boxes[i])
                if method == "soft_gaussian":
                    left[i] *= math.exp(-(iou**2) / sigma)
                elif iou >= iou_threshold:
                    left[i] *= 1 - iou
    return sorted([one for one in found if one[1] > score_threshold], key=lambda one: -one[1])


def clustered_boxes(seed: int, num_boxes: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 boxes around three points, so that many overlap, two of them identical."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(3, 2, generator=generator, dtype=torch.float64) * 60
    centres = places[torch.randint(3, (num_boxes,), generator=generator)]
    centres = centres + torch.randn(num_boxes, 2, generator=generator, dtype=torch.float64) * 6
    sides = 10 + 30 * torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    boxes[-1:] = boxes[:1]
    scores = torch.rand(num_boxes, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, num_classes + 1, (num_boxes,), generator=generator)
    return boxes, scores, labels


VALUES = dict(iou_threshold=0.5, sigma=0.5, score_threshold=0.05)


@pytest.mark.parametrize("method", ["soft_linear", "soft_gaussian"])
@pytest.mark.parametrize(
    "others", [{}, {"iou_threshold": 0.3, "sigma": 0.2}, {"score_threshold": 0.0}]
)
@pytest.mark.parametrize("num_boxes, num_classes", [(1, 1), (40, 1), (90, 4), (7, 20)])
def test_scores_are_those_of_the_paper(
    method: str, others: dict[str, float], num_boxes: int, num_classes: int
) -> None:
    for seed in range(4):
        found = clustered_boxes(seed, num_boxes, num_classes)
        kept, scores = non_maximum_suppression(*found, method=method, **VALUES | others)
        expected = reference(*(one.tolist() for one in found), method=method, **VALUES | others)
        assert kept.tolist() == [index for index, _ in expected]
        wanted = torch.tensor([score for _, score in expected], dtype=torch.float64)
        torch.testing.assert_close(scores, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", ["soft_linear", "soft_gaussian"])
def test_scores_never_rise_and_descend(method: str) -> None:
    changed = 0
    for seed in range(5):
        boxes, before, labels = (one.float() for one in clustered_boxes(seed, 60, 3))
        kept, scores = non_maximum_suppression(
            boxes, before, labels.long(), method=method, **VALUES
        )
        assert (scores <= before[kept]).all() and (scores > 0.05).all()
        assert (scores.diff() <= 0).all() and len(kept.unique()) == len(kept)
        for label in labels.unique():  # the best score of a class never changes
            best = torch.where(labels == label, before, 0).argmax()
            assert scores[kept == best] == before[best]
        changed += int((scores < before[kept]).sum())
    assert changed > 50


def test_boxes_that_do_not_overlap_are_left_alone() -> None:
    boxes = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 20, 9.0] for i in range(4)])
    scores = torch.tensor([0.2, 0.9, 0.5, 0.04])
    labels = torch.ones(4, dtype=torch.int64)
    for method in ("soft_linear", "soft_gaussian"):
        kept, after = non_maximum_suppression(boxes, scores, labels, method=method, **VALUES)
        assert kept.tolist() == [1, 2, 0] and torch.equal(after, scores[kept])


def test_boxes_without_area() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 10.0, 10.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.ones(3, dtype=torch.int64)
    for method in ("soft_linear", "soft_gaussian"):
        kept, after = non_maximum_suppression(boxes, scores, labels, method=method, **VALUES)
        assert kept.tolist() == [0, 1, 2] and torch.equal(after, scores)


@pytest.mark.parametrize("method", ["hard", "soft_linear", "soft_gaussian"])
def test_no_boxes(method: str) -> None:
    nothing = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    kept, scores = non_maximum_suppression(*nothing, method=method, **VALUES)
    assert kept.shape == scores.shape == (0,) and kept.dtype == torch.int64


def test_hard_is_torchvisions() -> None:
    boxes, scores, labels = clustered_boxes(0, 60, 3)
    kept, after = non_maximum_suppression(boxes, scores, labels, method="hard", **VALUES)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, 0.5))
    assert torch.equal(after, scores[kept])


def test_refuses_another_method() -> None:
    with pytest.raises(
        ValueError, match="model.nms=weighted must be one of hard, soft_linear, soft_"
    ):
        non_maximum_suppression(*clustered_boxes(0, 3, 1), method="weighted", **VALUES)
