"""Sampling places of consecutive layers, and effective receptive fields, beside what is known."""

import numpy as np
import pytest
import torch
from tiny_networks import samples, tiny

from detector.analysis.layers import Layer, convolutions, record_layers
from detector.analysis.sampling.point_sampling import last_layers, sampling_at_points, trace


def test_three_plain_layers_sample_a_square() -> None:
    layers = [
        Layer(name, np.zeros((1, 9, 2, 9, 9)), np.ones((1, 9, 9, 9)), size, (s, s), (1, 1), (1, 1),
              False, False)
        for name, size, s in (("a", (18, 18), 2), ("b", (9, 9), 1), ("c", (9, 9), 1))
    ]  # fmt: skip
    places, weights = trace(layers, np.array([4, 5]), plain=False)
    assert places.shape == (729, 2) and (weights == 1).all()
    reached = {tuple(place) for place in places.tolist()}
    # Two layers of stride 1 reach 2 cells around (4, 5); the first doubles them, and adds 1.
    assert reached == {(y, x) for y in range(3, 14) for x in range(5, 16)}


def test_masks_and_offsets_on_the_way() -> None:
    offsets = np.zeros((1, 9, 2, 5, 5))
    offsets[0, :, 0] = 1.0
    masks = np.full((1, 9, 5, 5), 0.5)
    one = Layer("a", offsets, masks, (5, 5), (1, 1), (1, 1), (1, 1), True, True)
    places, weights = trace([one, one], np.array([2, 2]), plain=False)
    plain, _ = trace([one, one], np.array([2, 2]), plain=True)
    assert (places - plain == [2.0, 0.0]).all() and (weights == 0.25).all()


def test_sampling_at_two_points() -> None:
    """The gradient reaches no further than the network can see; the places follow the image."""
    model = tiny("c5", offset_groups=2)
    image = samples()[0]["image"].float() / 255
    at, beside = sampling_at_points(model, image, [(16.0, 32.0), (112.0, 32.0)])
    assert at.field.sum() == pytest.approx(1, rel=1e-4) and at.field.shape == (96, 128)
    assert at.places.shape == ((9 * 2) ** 2, 2)  # c5 has two layers, of two groups
    assert at.grid.shape == (81, 2) and at.grid.mean(axis=0) == pytest.approx([0, 32], abs=33)
    assert (beside.grid - at.grid).mean(axis=0) == pytest.approx([96, 0])
    centre = (at.field.sum(axis=0) * np.arange(128)).sum()
    assert centre < (beside.field.sum(axis=0) * np.arange(128)).sum()
    assert [layer.name for layer in last_layers(_layers(tiny("none")))] == [
        "layer3.0.conv2",
        "layer4.0.conv1",
        "layer4.0.conv2",
    ]


def test_the_plain_grid_is_centred_on_the_point() -> None:
    """The centre of cell (1, 2) of a map of stride 32 is that of pixel (32, 64)."""
    image = samples()[0]["image"].float() / 255
    (at,) = sampling_at_points(tiny("none"), image, [(64.5, 32.5)])
    assert at.grid.mean(axis=0) == pytest.approx([64.5, 32.5])


def _layers(model) -> dict[str, Layer]:
    with torch.no_grad(), record_layers(model) as layers:
        model.backbone(torch.zeros(1, 3, 64, 64))
    assert list(layers) == list(convolutions(model))
    return layers
