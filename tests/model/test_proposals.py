"""The RPN, the matcher and the coder of boxes: the same bits as torchvision's."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from detector.model.anchors import Anchors
from detector.model.boxes import BoxDecoder
from detector.model.matching import BoxMatcher
from detector.model.proposals import ProposalNetwork

SHAPES = [(64, 96), (50, 96), (64, 80)]


def networks(min_side: float) -> tuple[ProposalNetwork, RegionProposalNetwork]:
    torch.manual_seed(0)
    anchors = Anchors([[16], [32]], [0.5, 1.0, 2.0], rounded=True, strides=None)
    head = RPNHead(8, 3)
    counts: dict[str, Any] = {
        "pre_nms_top_n": {"training": 150, "testing": 90},
        "post_nms_top_n": {"training": 60, "testing": 30},
    }
    ours = ProposalNetwork(
        anchors=anchors,
        head=head,
        decoder=BoxDecoder((1.0, 1.0, 1.0, 1.0), clamp_shrinking=False),
        batch_size=32,
        min_side=min_side,
        **counts,
    )
    theirs = RegionProposalNetwork(anchors, head, 0.7, 0.3, 32, 0.5, **counts, nms_thresh=0.7)
    theirs.min_size = min_side
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return ours, theirs


@pytest.mark.parametrize("min_side", [1e-3, 20.0, 1000.0])
@pytest.mark.parametrize("training", [True, False])
def test_proposals_losses_and_gradients(min_side: float, training: bool) -> None:
    ours, theirs = networks(min_side)
    rng = torch.Generator().manual_seed(1)
    maps = {
        "0": torch.randn(3, 8, 16, 24, generator=rng),
        "1": torch.randn(3, 8, 8, 12, generator=rng),
    }
    images = ImageList(torch.zeros(3, 3, 64, 96), SHAPES)
    boxes = [[[4.0, 4, 30, 40], [10, 20, 70, 44]], [], [[0, 0, 79, 60]]]
    targets = [{"boxes": torch.tensor(one).reshape(-1, 4)} for one in boxes]
    results = []
    for one in (ours, theirs):
        torch.manual_seed(2)
        found, losses = one.train(training)(images, maps, targets)
        one.zero_grad()
        if training:
            torch.stack(list(losses.values())).sum().backward()
        grads = [parameter.grad for parameter in one.parameters() if training]
        results.append([*found, *losses.values(), *grads])
    assert len(results[0][0]) > 10 or min_side == 1000
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("low_quality", [False, True])
def test_matches(low_quality: bool) -> None:
    """With IoUs of few different values, many are equal to each other and to the thresholds."""
    rng = torch.Generator().manual_seed(0)
    for objects, boxes, (low, high) in product((1, 5), (1, 40), ((0.5, 0.5), (0.25, 0.75))):
        overlaps = torch.randint(9, (objects, boxes), generator=rng) / 8
        ours, theirs = BoxMatcher(high, low, low_quality), Matcher(high, low, low_quality)
        assert torch.equal(ours(overlaps), theirs(overlaps))
    with pytest.raises(ValueError, match="No proposal boxes"):
        ours(torch.zeros(3, 0))


def boxes_of(rng: torch.Generator, number: int) -> Tensor:
    corners = 400 * torch.rand(number, 2, generator=rng)
    return torch.cat([corners, corners + 1 + 300 * torch.rand(number, 2, generator=rng)], dim=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coded_boxes(weights: tuple[float, float, float, float], dtype: torch.dtype) -> None:
    ours, theirs = BoxDecoder(weights, clamp_shrinking=False), BoxCoder(weights)
    rng = torch.Generator().manual_seed(0)
    boxes, others = boxes_of(rng, 37), boxes_of(rng, 37)
    deltas = 20 * torch.randn(37, 12, generator=rng, dtype=dtype)  # some are clamped
    assert torch.equal(ours.decode_single(deltas, boxes), theirs.decode_single(deltas, boxes))
    both = boxes.to(dtype), others.to(dtype)
    assert torch.equal(ours.encode_single(*both), theirs.encode_single(*both))
    none = deltas[:0], [boxes[:0]]
    assert ours.decode(*none).shape == theirs.decode(*none).shape
