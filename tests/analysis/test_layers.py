"""Sampling locations of layers agree with those of the operator; statistics agree with numpy."""

import numpy as np
import pytest
import torch
from tiny_networks import samples, tiny
from torch import nn

from detector.analysis.layers import Layer, record_layers
from detector.evaluation.offset_sizes import OffsetSizes
from detector.model.deformable_conv import DeformableConv2d


def deformable() -> DeformableConv2d:
    return DeformableConv2d(
        1, 1, (3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, bias=False,
        modulated=False, offset_groups=1, mask_start=1.0,
    )  # fmt: skip


def test_places_are_those_that_the_operator_reads() -> None:
    """If the input holds its own coordinates and only one tap has weight 1, the output is the
    location of that tap.
    """
    layer = DeformableConv2d(
        2, 2, (3, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=1, bias=False,
        modulated=False, offset_groups=1, mask_start=1.0,
    )  # fmt: skip
    nn.init.uniform_(layer.conv_offset.bias, -0.9, 0.9)
    nn.init.normal_(layer.conv_offset.weight, std=0.001)
    height, width = 13, 17
    rows = torch.arange(height).float().view(-1, 1).expand(height, width)
    columns = torch.arange(width).float().expand(height, width)
    coordinates = torch.stack([rows, columns])[None]
    with torch.no_grad():
        offset, _ = layer.offsets(coordinates)
    seen = Layer(
        "one", offset[0].numpy().reshape(1, 9, 2, *offset.shape[-2:]), np.ones((1, 9, 1, 1)),
        (height, width), (2, 1), (1, 2), (2, 1), True, False,
    )  # fmt: skip
    places = seen.places()[0]
    for tap in range(9):
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[0, 0, tap // 3, tap % 3] = layer.weight[1, 1, tap // 3, tap % 3] = 1
            read = layer(coordinates)[0].numpy()
        inside = (places[tap] >= 0).all(axis=0) & (places[tap, 0] <= height - 1)
        inside &= places[tap, 1] <= width - 1
        assert inside.sum() > 20
        # Bilinear interpolation of a linear function is exact, except for rounding.
        assert np.abs(read - places[tap])[:, inside].max() < 1e-4


@pytest.mark.parametrize("dilation", [1, 2])
def test_effective_dilation_is_exact(dilation: int) -> None:
    plain = np.zeros((2, 9, 2, 4, 5), dtype=np.float32)
    shape = ((8, 9), (2, 1), (1, 2), (dilation, dilation), True, True)
    ones = np.ones((2, 9, 4, 5))
    assert (Layer("x", plain, ones, *shape).effective_dilation() == dilation).all()
    tap = np.array([(i - 1, j - 1) for i in range(3) for j in range(3)], dtype=np.float32)
    doubled = plain + dilation * tap[None, :, :, None, None]
    assert (Layer("x", doubled, ones, *shape).effective_dilation() == 2 * dilation).all()
    shifted = doubled + np.float32(3.5)  # a shift does not change the dilation
    assert (Layer("x", shifted, ones, *shape).effective_dilation() == 2 * dilation).all()


def test_sizes_while_a_detector_runs() -> None:
    """Sizes agree with numpy's mean and percentile of all lengths, and the sizes of two processes
    can be added.
    """
    model = tiny("c4-c5", offset_groups=2)
    pictures = [samples()[index]["image"].float() / 255 for index in range(2)]
    whole, parts = OffsetSizes(), [OffsetSizes(), OffsetSizes()]
    lengths: dict[str, list[np.ndarray]] = {}
    for picture, part in zip(pictures, parts, strict=True):
        with torch.no_grad(), record_layers(model) as layers, whole.watching(model):
            with part.watching(model):
                model([picture])
        for name, layer in layers.items():
            if layer.is_deformable:
                lengths.setdefault(name, []).append(np.linalg.norm(layer.offsets, axis=2).ravel())
    parts[0].add(parts[1])
    assert parts[0].summary() == whole.summary() and set(whole.summary()) == set(lengths)
    for name, sizes in whole.summary().items():
        expected = np.concatenate(lengths[name])
        assert sizes.mean == pytest.approx(expected.mean(), rel=1e-5)
        assert sizes.largest == pytest.approx(expected.max(), rel=1e-6)
        assert sizes.p99 == pytest.approx(np.percentile(expected, 99), rel=0.03)
    assert whole.summary()["layer4.0.conv1"].side == 3  # 96 / 32


def test_lengths_that_are_not_finite_are_left_out() -> None:
    layer = deformable()
    nn.init.constant_(layer.conv_offset.bias, 3.0)
    assert layer.conv_offset.bias is not None
    with torch.no_grad():
        layer.conv_offset.bias[2:5] = torch.tensor([torch.inf, 4.0, torch.nan])  # two of nine taps
    sizes = OffsetSizes()
    with sizes.watching(nn.Sequential(layer)):
        layer(torch.zeros(2, 1, 4, 5))
    (found,) = sizes.summary().values()
    assert found.mean == found.largest == pytest.approx(18**0.5)  # of (3, 3)
    assert found.p99 == pytest.approx(18**0.5, rel=0.02) and found.side == 4


def test_counting_offsets_does_not_wait_for_the_device() -> None:
    """Tensors on the device "meta" have no values, so whatever needs one fails."""
    layer = deformable().to("meta")
    with pytest.raises(NotImplementedError, match="meta"), OffsetSizes().watching(layer):
        layer.conv_offset(torch.zeros(1, 1, 4, 5, device="meta"))
        counted = True
    assert counted  # only the end of the context needs values
