"""Deformable convolution and RoI pooling from their definitions: slow plain Python, independent of
the kernels.

The derivatives come from torch's autograd through the bilinear weights, not from formulas.
"""

import math

import torch
from torch import Tensor


def bilinear(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the value of a plane (H, W) at (y, x); pixels outside are zero."""
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
    """Compute `ops.deform_conv2d` on float64 tensors; return (N, O, Ho, Wo)."""
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


def along_axis(place: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """Return the pixels that a sample of RoIAlign reads along one axis, and their weights."""
    one = place.new_ones(())
    if not -1 <= place.item() <= size:  # also for NaN
        return []
    if place.item() < 0:
        return [(0, one)]
    low = int(place.item())
    if low >= size - 1:
        return [(size - 1, one)]
    return [(low, low + 1 - place), (low + 1, place - low)]


def roi_reference(
    input: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int],
    offset: Tensor | None,
    mask: Tensor | None,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    gamma: float,
) -> Tensor:
    """Compute `ops.deform_roi_pool` on float64 tensors; return (R, C, Ho, Wo)."""
    num_channels, height, width = input.shape[1:]
    out_h, out_w = output_size
    half = 0.5 if aligned else 0.0
    bins = []
    for number, (image, *corners) in enumerate(boxes.tolist()):
        left, top, right, bottom = (corner * spatial_scale - half for corner in corners)
        roi_h, roi_w = bottom - top, right - left
        if not aligned:
            roi_h, roi_w = max(roi_h, 1.0), max(roi_w, 1.0)
        bin_h, bin_w = roi_h / out_h, roi_w / out_w
        grid_h = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
        grid_w = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
        for i in range(out_h):
            for j in range(out_w):
                y, x = input.new_tensor(top + i * bin_h), input.new_tensor(left + j * bin_w)
                if offset is not None:
                    x = x + gamma * roi_w * offset[number, 0, i, j]
                    y = y + gamma * roi_h * offset[number, 1, i, j]
                total = input.new_zeros(num_channels)
                for iy in range(grid_h):
                    for ix in range(grid_w):
                        rows = along_axis(y + (iy + 0.5) * bin_h / grid_h, height)
                        columns = along_axis(x + (ix + 0.5) * bin_w / grid_w, width)
                        for row, weight_y in rows:
                            for column, weight_x in columns:
                                pixel = input[int(image), :, row, column]
                                total = total + weight_y * weight_x * pixel
                total = total / max(grid_h * grid_w, 1)
                bins.append(total if mask is None else total * mask[number, i, j])
    return torch.stack(bins).reshape(-1, out_h, out_w, num_channels).permute(0, 3, 1, 2)
