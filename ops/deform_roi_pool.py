"""Deformable RoI pooling: the public function and module, and the registrations with torch.

    input   (N, C, H, W)    float32, float64, bfloat16 or float16
    boxes   (R, 5)          index of the image, x1, y1, x2, y2
    offset  (R, 2, Ho, Wo)  shift of each bin along x and along y, in units of gamma * RoI size
    mask    (R, Ho, Wo)     a factor for each bin
    output  (R, C, Ho, Wo)

Without offset and mask it is RoIAlign. The kernels are in `csrc/`. This file checks the arguments
and registers the operator with torch, as `deform_conv.py` does for the convolution.

RoIAlign: He et al., Mask R-CNN, ICCV 2017.
v1: Dai et al., Deformable Convolutional Networks, ICCV 2017, equations 5 and 6.
v2: Zhu et al., Deformable ConvNets v2, CVPR 2019, equation 2.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from ops import onnx
from ops.checks import (
    check_kinds,
    check_tensors,
    location_dtype,
    memory_format,
    pair,
    refuse_forward_mode,
)


def deform_roi_pool(
    input: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    offset: Tensor | None = None,
    mask: Tensor | None = None,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    gamma: float = 0.1,
) -> Tensor:
    """Compute RoIAlign (no offset) or deformable RoI pooling v1 (offset) or v2 (offset and mask).

    A RoI is divided into Ho x Wo bins. Each bin moves by gamma * offset * the RoI's size, and its
    output is the average of bilinear samples within it, multiplied by its mask. Without offset and
    mask the results are those of `torchvision.ops.roi_align`. With `aligned=True` they are those of
    mmcv's `DeformRoIPool`, except for the gradient of offsets where samples lie outside the image:
    here such a sample takes the border's value and has no gradient across the border.

    Boxes, offsets and masks are float32, or float64 beside float64 features. A NaN or infinite box
    or offset samples nothing, so its outputs are zero. Boxes have no gradient.

    Args:
        input: features (N, C, H, W). Channels-last is fastest; other formats are copied into it.
        boxes: (R, 5), the image's index and x1, y1, x2, y2 in pixels of the image.
        output_size: one integer, or (Ho, Wo).
        offset: (R, 2, Ho, Wo), along x first, then along y.
        mask: a factor for each bin, (R, Ho, Wo).
        spatial_scale: factor from pixels of the image to pixels of the features, such as
            1 / stride.
        sampling_ratio: number of samples in a bin along each axis; if 0 or negative, the size of
            the bin in pixels of the features, rounded up.
        aligned: whether to shift boxes by half a pixel of the features, which aligns them
            correctly. If False, RoIs are at least one pixel wide and high.
        gamma: factor of the offsets.

    Returns:
        (R, C, Ho, Wo), contiguous, in the input's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the tensor.
        RuntimeError: the image's index of a box is out of range. On CUDA, where this check would
            have to wait for the GPU, the outputs of such a box are NaN instead.
        NotImplementedError: a forward-mode or a second derivative is requested.
    """
    size = pair("output_size", output_size)
    check_tensors({"input": input, "boxes": boxes}, {"offset": offset, "mask": mask})
    _check_shapes(input, boxes, size, offset, mask)
    check_kinds(input, {"boxes": boxes, "offset": offset, "mask": mask})
    for name, value in {"spatial_scale": spatial_scale, "gamma": gamma}.items():
        if not -math.inf < value < math.inf:
            raise ValueError(f"{name} must be a finite number, got {value}")
    dtype = location_dtype(input)
    arguments = (
        input,
        boxes.to(dtype),
        None if offset is None else offset.to(dtype),
        None if mask is None else mask.to(dtype),
        size,
        float(spatial_scale),
        sampling_ratio,
        aligned,
        float(gamma),
    )
    refuse_forward_mode("deform_roi_pool", input, boxes, offset, mask)
    if torch.onnx.is_in_onnx_export():
        return onnx.roi_align(*arguments)
    output: Tensor = torch.ops.deform_roi_pool.forward(*arguments)
    return output


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling with a fixed output size; see `deform_roi_pool`.

    The offsets (and the mask, for v2) are arguments of `forward`.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = pair("output_size", output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.gamma = gamma

    def forward(
        self,
        input: Tensor,
        boxes: Tensor,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Pool the features; see `deform_roi_pool` for the shapes."""
        return deform_roi_pool(
            input,
            boxes,
            self.output_size,
            offset,
            mask,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            self.gamma,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, gamma={self.gamma}"
        )


def _check_shapes(
    input: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    offset: Tensor | None,
    mask: Tensor | None,
) -> None:
    if input.dim() != 4:
        raise ValueError(f"input must be (N, C, H, W), got {tuple(input.shape)}")
    if 0 in input.shape[1:]:
        raise ValueError(f"input {tuple(input.shape)} has no channels or no pixels")
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        raise ValueError(
            "boxes must be (R, 5), the image's index and x1, y1, x2, y2 of each; got "
            f"{tuple(boxes.shape)}"
        )
    if min(size) < 1:
        raise ValueError(f"output_size must be positive, got {size}")
    num_boxes = boxes.shape[0]  # len() would become a constant in a compiled graph
    expected = {"offset": (num_boxes, 2, *size), "mask": (num_boxes, *size)}
    for name, tensor in {"offset": offset, "mask": mask}.items():
        if tensor is not None and tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} for {num_boxes} boxes and output_size "
                f"{size}, got {tuple(tensor.shape)}"
            )


# ---- fake: shapes and memory formats ---------------------------------------------------------


@torch.library.register_fake("deform_roi_pool::forward")
def _forward_fake(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    *others: Any,
) -> Tensor:
    return input.new_empty(boxes.shape[0], input.shape[1], *output_size)


@torch.library.register_fake("deform_roi_pool::backward")
def _backward_fake(
    grad_output: Tensor,
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    gamma: float,
    needs_input: bool,
    needs_offset: bool,
    needs_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = boxes.new_empty(0)
    return (
        torch.empty_like(input, memory_format=memory_format(input))
        if needs_input
        else input.new_empty(0),
        boxes.new_empty(offset.shape) if needs_offset and offset is not None else nothing,
        boxes.new_empty(mask.shape) if needs_mask and mask is not None else nothing,
    )


# ---- autograd --------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, boxes, offset, mask, *ctx.numbers = inputs
    ctx.save_for_backward(input, boxes, offset, mask)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    needs_input, _, needs_offset, needs_mask, *_ = ctx.needs_input_grad
    grad_input, grad_offset, grad_mask = torch.ops.deform_roi_pool.backward(
        grad_output, *ctx.saved_tensors, *ctx.numbers, needs_input, needs_offset, needs_mask
    )
    return (
        grad_input if needs_input else None,
        None,
        grad_offset if needs_offset else None,
        grad_mask if needs_mask else None,
        *[None] * 5,
    )


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("deform_roi_pool has no double backward")


torch.library.register_autograd("deform_roi_pool::forward", _backward, setup_context=_save)
torch.library.register_autograd("deform_roi_pool::backward", _double_backward)


# ---- flops: a bilinear sample is four multiply-adds -------------------------------------------


def _sample_flops(pooled: list[int], sampling_ratio: int) -> int:
    """Return the flops of the samples.

    Where the number of samples depends on the boxes (`sampling_ratio` < 1), count one per bin.
    """
    return math.prod(pooled) * max(sampling_ratio, 1) ** 2 * 4 * 2


@register_flop_formula(torch.ops.deform_roi_pool.forward)
def _forward_flops(
    input: list[int],
    boxes: list[int],
    offset: list[int] | None,
    mask: list[int] | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    *others: Any,
    out_shape: list[int],
) -> int:
    return _sample_flops(out_shape, sampling_ratio)


@register_flop_formula(torch.ops.deform_roi_pool.backward)
def _backward_flops(
    grad_output: list[int],
    input: list[int],
    boxes: list[int],
    offset: list[int] | None,
    mask: list[int] | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    *others: Any,
    out_shape: Any,
) -> int:
    return (1 if offset is None else 4) * _sample_flops(grad_output, sampling_ratio)
