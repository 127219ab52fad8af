"""Inputs for the tests of the operators: geometries whose sizes differ along the two axes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The sizes of a deformable convolution."""

    batch: int
    channels: int
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    @property
    def out_size(self) -> tuple[int, int]:
        out_h, out_w = (
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        )
        return out_h, out_w

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        return self.stride, self.padding, self.dilation


# Square, symmetric geometries hide swapped sizes: here all sizes differ along the two axes.
UGLY = Geometry(2, 6, (5, 7), 4, (3, 2), (2, 1), (1, 0), (2, 1), 2, 3)


def random_geometry(seed: int) -> Geometry:
    """Draw sizes that differ along the two axes, and 1 to 3 weight and offset groups."""
    rng = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=rng))

    def two(low: int, high: int) -> tuple[int, int]:
        first = draw(low, high)
        second = draw(low, high - 1)
        return first, second if second < first else second + 1

    groups, offset_groups = draw(1, 3), draw(1, 3)
    return Geometry(
        batch=draw(1, 3),
        channels=groups * offset_groups * draw(1, 12),
        size=two(9, 17),
        out_channels=groups * draw(1, 7),
        kernel=two(1, 4),
        stride=two(1, 3),
        padding=two(0, 3),
        dilation=two(1, 3),
        groups=groups,
        offset_groups=offset_groups,
    )


def make(
    geometry: Geometry,
    *,
    seed: int = 0,
    scale: float = 2.0,
    mask: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Draw tensors that require gradients.

    Offsets are at least 0.1 away from whole pixels, where derivatives jump.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    taps = geometry.kernel[0] * geometry.kernel[1]
    groups = geometry.offset_groups
    offset = scale * normal(geometry.batch, 2 * groups * taps, *geometry.out_size)
    fraction = 0.1 + 0.8 * torch.rand(offset.shape, generator=rng, dtype=torch.float64)
    tensors = {
        "input": normal(geometry.batch, geometry.channels, *geometry.size),
        "offset": offset.floor() + fraction,
        "weight": normal(
            geometry.out_channels, geometry.channels // geometry.groups, *geometry.kernel
        ),
    }
    if bias:
        tensors["bias"] = normal(geometry.out_channels)
    if mask:
        tensors["mask"] = normal(geometry.batch, groups * taps, *geometry.out_size)
    return {name: t.to(device, dtype).requires_grad_() for name, t in tensors.items()}


def make_rois(
    *,
    num_boxes: int = 9,
    channels: int = 5,
    features: tuple[int, int] = (11, 14),
    size: tuple[int, int] = (3, 2),
    seed: int = 0,
    offset: bool = True,
    mask: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Draw tensors with boxes in two images, some partly outside; the features have stride 4."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, dtype=torch.float64)

    height, width = features
    extent = 4.0 * torch.tensor([width, height])
    corner, sides = (
        (1.3 * uniform(num_boxes, 2) - 0.2) * extent,
        0.8 * uniform(num_boxes, 2) * extent,
    )
    image = (uniform(num_boxes, 1) * 2).floor()
    tensors = {
        "input": torch.randn((2, channels, *features), generator=rng, dtype=torch.float64),
        "boxes": torch.cat([image, corner, corner + sides], dim=1),
    }
    if offset:
        tensors["offset"] = torch.randn((num_boxes, 2, *size), generator=rng, dtype=torch.float64)
    if mask:
        tensors["mask"] = uniform(num_boxes, *size)
    return {name: t.to(device, dtype) for name, t in tensors.items()}


def relative(actual: Tensor, expected: Tensor) -> float:
    """Return ||actual - expected|| / ||expected||, in float64.

    If `actual` contains NaN, so does the result, and `relative(...) < tolerance` is false.
    """
    expected = expected.detach().double().cpu()
    error = (actual.detach().double().cpu() - expected).norm()
    return float(error / expected.norm().clamp_min(1e-30))
