"""Centres of cells beside the gradient of a network whose kernels are symmetric."""

import numpy as np
import pytest
import torch
from torch import nn

from detector.analysis.coordinates import cells_at, centres_of


def test_cells_are_centred_on_what_they_see() -> None:
    """Kernels, strides and paddings are those of a ResNet, as far as a stride of 8."""
    convolutions = [
        nn.Conv2d(1, 1, 7, stride=2, padding=3),
        nn.Conv2d(1, 1, 3, stride=2, padding=1),
        nn.Conv2d(1, 1, 3, stride=1, padding=1),
        nn.Conv2d(1, 1, 3, stride=2, padding=1),
    ]
    for one in convolutions:
        nn.init.ones_(one.weight)
    image = torch.zeros(1, 1, 96, 128, requires_grad=True)
    output = nn.Sequential(*convolutions)(image)
    stride = np.array(image.shape[-2:]) / np.array(output.shape[-2:])
    assert stride.tolist() == [8, 8]
    for cell in ((5, 7), (6, 8)):  # whose receptive fields do not reach a border
        (field,) = torch.autograd.grad(output[0, 0, cell[0], cell[1]], image, retain_graph=True)
        weights = field[0, 0].numpy().astype(np.float64)
        centres = np.indices(weights.shape) + 0.5  # of pixels
        seen = (weights * centres).sum(axis=(1, 2)) / weights.sum()
        found = centres_of(np.array(cell), stride, np.ones(2))
        assert found == pytest.approx(seen, abs=1e-6)
        # The file is half as high and a quarter as wide as what the network sees.
        scale = np.array([2.0, 4.0])
        assert cells_at(seen / scale, stride, scale) == pytest.approx(cell, abs=1e-6)
