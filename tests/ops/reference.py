"""Deformable convolution from its definition: slow plain Python, independent of the kernels.

Its derivatives come from torch's autograd through the bilinear weights, not from formulas.
"""

import math

import torch
from torch import Tensor


def bilinear(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The value of a plane (H, W) at (y, x), with zeros outside."""
    height, width = plane.shape
    if not (math.isfinite(y.item()) and math.isfinite(x.item())):
        return plane.new_zeros(())
    value = plane.new_zeros(())
    top, left = math.floor(y.item()), math.floor(x.item())
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
                value = value + weight * plane[row, column]
    return value


def reference(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    """As `ops.deform_conv2d`, on float64 tensors; returns (N, O, Ho, Wo)."""
    num_images, channels = input.shape[:2]
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    taps = kernel_h * kernel_w
    groups = channels // group_channels
    offset_groups = offset.shape[1] // (2 * taps)
    out_h, out_w = offset.shape[2:]
    planes = []
    for n in range(num_images):
        for o in range(out_channels):
            group = o // (out_channels // groups)
            for out_y in range(out_h):
                for out_x in range(out_w):
                    total = input.new_zeros(()) if bias is None else bias[o]
                    for c_in_group in range(group_channels):
                        c = group * group_channels + c_in_group
                        offset_group = c // (channels // offset_groups)
                        for i in range(kernel_h):
                            for j in range(kernel_w):
                                tap = offset_group * taps + i * kernel_w + j
                                dy = offset[n, 2 * tap, out_y, out_x]
                                dx = offset[n, 2 * tap + 1, out_y, out_x]
                                y = out_y * stride[0] - padding[0] + i * dilation[0] + dy
                                x = out_x * stride[1] - padding[1] + j * dilation[1] + dx
                                sample = bilinear(input[n, c], y, x)
                                if mask is not None:
                                    sample = sample * mask[n, tap, out_y, out_x]
                                total = total + weight[o, c_in_group, i, j] * sample
                    planes.append(total)
    return torch.stack(planes).reshape(num_images, out_channels, out_h, out_w)
