"""Anchors compared with torchvision's, which are computed anew for every batch."""

import copy
from itertools import product

import torch
from dispatched import Dispatched
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detector.model.anchors import Anchors, grid

SIZES, RATIOS = [[16, 24], [32, 48], [64, 96]], [0.5, 1.0, 2.0]


def anchors(strides: list[int] | None = None) -> Anchors:
    return Anchors(SIZES, RATIOS, rounded=True, strides=strides)


def inputs(
    height: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[ImageList, list[Tensor]]:
    """Return two images of a size and their feature maps, of strides 4, 8 and 16 downwards and
    twice as much to the right.
    """
    images = torch.zeros(2, 3, height, width, device=device)
    maps = [
        torch.zeros(2, 1, height // stride, width // (2 * stride), dtype=dtype, device=device)
        for stride in (4, 8, 16)
    ]
    return ImageList(images, [(height, width)] * 2), maps


def test_they_are_those_of_torchvision() -> None:
    ours, theirs = anchors(), AnchorGenerator(tuple(map(tuple, SIZES)), (tuple(RATIOS),) * 3)
    sizes = [(64, 96), (96, 64), (32, 160)]
    for dtype, (height, width) in product([torch.float32, torch.float64] * 2, sizes):
        given = inputs(height, width, dtype)
        for actual, expected in zip(ours(*given), theirs(*given), strict=True):
            assert actual.dtype == expected.dtype and torch.equal(actual, expected)


def test_fixed_strides() -> None:
    found, _ = anchors([3, 5, 7])(*inputs(64, 96))
    centres = ((found[:, :2] + found[:, 2:]) / 2)[::6]  # of the first of six anchors in each cell
    expected = [
        [stride * x, stride * y]
        for stride, rows, columns in ((3, 16, 12), (5, 8, 6), (7, 4, 3))
        for y in range(rows)
        for x in range(columns)
    ]
    assert centres.tolist() == expected


def test_a_size_is_computed_once() -> None:
    ours = anchors()
    first, second = inputs(64, 96), inputs(128, 32)
    ours(*first), ours(*second)
    average = copy.deepcopy(ours)
    with Dispatched() as dispatched:
        ours(*first), ours(*second), average(*first)
    assert dispatched.names == []
    with Dispatched() as dispatched:
        ours(*inputs(64, 64))
    assert dispatched.names


def test_another_device() -> None:
    ours = anchors()
    for device in ("cpu", "meta", "cpu"):
        assert {one.device.type for one in ours(*inputs(64, 96, device=device))} == {device}


def test_few_sizes_are_kept() -> None:
    ours = anchors()
    for number in range(1, 100):
        ours(*inputs(16, 32 * number))
    info = grid.cache_info()
    assert info.currsize == info.maxsize == 16
    assert not ours.state_dict() and not list(ours.buffers())


def test_training_after_inference() -> None:
    grid.cache_clear()
    ours = anchors()
    with torch.inference_mode():
        ours(*inputs(64, 96))
    (found, _) = ours(*inputs(64, 96))
    (found * torch.ones(4, requires_grad=True)).sum().backward()  # which keeps them
