"""Deformable convolution: the public function and module, and the registrations with torch.

    input   (N, C, H, W)         float32, float64, bfloat16 or float16
    offset  (N, 2 G K, Ho, Wo)   (dy, dx) in pixels for each tap; taps row-major, offset groups
                                 outermost
    mask    (N, G K, Ho, Wo)     a factor for each tap; with a mask it is v2, without one v1
    weight  (O, C / groups, kernel_h, kernel_w)
    output  (N, O, Ho, Wo)

K = kernel_h kernel_w is the number of taps, G that of offset groups. The kernels are in `csrc/`.
This file checks the arguments and registers the shapes (fake), derivatives (autograd), precision
(autocast) and cost (flops) of the operator. `onnx.py` replaces the operator in an export to ONNX.

v1: Dai et al., Deformable Convolutional Networks, ICCV 2017.
v2: Zhu et al., Deformable ConvNets v2, CVPR 2019.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from ops import onnx
from ops.checks import (
    check_kinds,
    check_tensors,
    location_dtype,
    memory_format,
    pair,
    refuse_forward_mode,
)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute deformable convolution v1 (no mask) or v2 (mask), with torchvision's interface.

    The output at position p is the sum over the taps k of weight_k * mask_k * input(p + p_k +
    offset_k), where the input is sampled bilinearly and is zero outside its map. The number of
    weight groups follows from the shape of `weight`, that of offset groups from the shape of
    `offset`.

    Differences from `torchvision.ops.deform_conv2d`: bfloat16 is supported; offsets and masks stay
    in float32, whatever the precision of the features; autocast casts the features to the lower
    precision, but not offsets and masks; a NaN or infinite offset samples nothing; the output is
    channels-last if the input is. `torch.jit.script` cannot compile the function.

    Args:
        input: features (N, C, H, W).
        offset: (dy, dx) in pixels for each of the K taps, (N, 2 * offset_groups * K, Ho, Wo).
        weight: (O, C / groups, kernel_h, kernel_w), in the input's dtype.
        bias: (O), in the input's dtype.
        stride, padding, dilation: one integer, or (vertical, horizontal).
        mask: a factor for each tap, (N, offset_groups * K, Ho, Wo).

    Returns:
        (N, O, Ho, Wo), in the input's dtype and memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the tensor.
        NotImplementedError: a forward-mode or a second derivative is requested.
    """
    stride, padding = pair("stride", stride), pair("padding", padding)
    dilation = pair("dilation", dilation)
    check_tensors(
        {"input": input, "offset": offset, "weight": weight}, {"bias": bias, "mask": mask}
    )
    _check_shapes(input, offset, weight, bias, mask, stride, padding, dilation)
    check_kinds(input, {"offset": offset, "weight": weight, "bias": bias, "mask": mask})
    _check_dtypes(input, weight, bias)
    dtype = location_dtype(input)
    arguments = (
        input,
        offset.to(dtype),
        weight,
        bias,
        None if mask is None else mask.to(dtype),
        stride,
        padding,
        dilation,
    )
    refuse_forward_mode("deform_conv2d", input, offset, weight, bias, mask)
    if torch.onnx.is_in_onnx_export():
        return onnx.deform_conv(*arguments)
    output: Tensor = torch.ops.deform_conv.forward(
        *arguments, _allows_fast_float32(input.device.type)
    )
    return output


class DeformConv2d(nn.Module):
    """A deformable convolution that holds its weight and bias; see `deform_conv2d`.

    `detector.model.deformable_conv.DeformableConv2d` also predicts the offsets.
    The offsets (and the mask, for v2) are arguments of `forward`. The parameters, their names and
    their initialisation are those of `torchvision.ops.DeformConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels {in_channels} and out_channels {out_channels} must be divisible by "
                f"groups {groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = pair("stride", stride)
        self.padding = pair("padding", padding)
        self.dilation = pair("dilation", dilation)
        self.groups = groups
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters uniformly, as `torch.nn.Conv2d` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = self.weight[0].numel()
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the convolution; see `deform_conv2d` for the shapes."""
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )


# ---- checks ---------------------------------------------------------------------------------


@torch.compiler.assume_constant_result
def _allows_fast_float32(device_type: str) -> bool:
    """Return whether torch's settings allow a float32 convolution to be computed with fewer bits.

    On a GPU it is computed in TF32, if cuDNN's convolutions are. On a CPU, AMX multiplies pairs of
    bfloat16 numbers instead, if torch's setting for products of matrices allows that.
    """
    if device_type == "cuda":
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        return bool(conv.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _check_shapes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    if input.dim() != 4:
        raise ValueError(f"input must be (N, C, H, W), got {tuple(input.shape)}")
    if weight.dim() != 4:
        raise ValueError(
            f"weight must be (O, C / groups, kernel_h, kernel_w), got {tuple(weight.shape)}"
        )
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"stride {stride} and dilation {dilation} must be positive and padding {padding} "
            "must not be negative"
        )
    num_images, channels, height, width = input.shape
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    if kernel_h < 1 or kernel_w < 1:
        raise ValueError(f"weight {tuple(weight.shape)} has an empty kernel")
    if channels == 0 or group_channels == 0 or channels % group_channels:
        raise ValueError(
            f"weight {tuple(weight.shape)} does not fit an input of {channels} channels: its "
            "second size must be channels / groups"
        )
    if out_channels == 0 or out_channels % (channels // group_channels):
        raise ValueError(
            f"weight {tuple(weight.shape)} has {out_channels} output channels, which cannot be "
            f"divided into {channels // group_channels} groups"
        )
    out_h, out_w = (
        (size + 2 * pad - dilate * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, dilate in zip(
            (height, width), (kernel_h, kernel_w), stride, padding, dilation, strict=True
        )
    )
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"input {tuple(input.shape)} is too small for kernel {(kernel_h, kernel_w)}, "
            f"stride {stride}, padding {padding}, dilation {dilation}"
        )
    taps = kernel_h * kernel_w
    offset_groups = offset.shape[1] // (2 * taps) if offset.dim() == 4 else 0
    expected = (num_images, 2 * max(offset_groups, 1) * taps, out_h, out_w)
    if tuple(offset.shape) != expected:
        raise ValueError(
            f"offset must have shape {expected} for {max(offset_groups, 1)} offset group(s) of "
            f"{taps} taps, got {tuple(offset.shape)}"
        )
    if channels % offset_groups:
        raise ValueError(
            f"offset {tuple(offset.shape)} is for {offset_groups} offset groups, which do not "
            f"divide the {channels} input channels"
        )
    if mask is not None and tuple(mask.shape) != (num_images, offset_groups * taps, out_h, out_w):
        expected = (num_images, offset_groups * taps, out_h, out_w)
        raise ValueError(f"mask must have shape {expected}, got {tuple(mask.shape)}")
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ValueError(f"bias must have shape {(out_channels,)}, got {tuple(bias.shape)}")


def _check_dtypes(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless the dtypes are equal or autocast, which makes them so, is enabled."""
    for name, tensor in {"weight": weight, "bias": bias}.items():
        if tensor is None or tensor.dtype == input.dtype:
            continue
        if not torch.is_autocast_enabled(input.device.type):
            raise ValueError(
                f"{name} is {tensor.dtype}, input is {input.dtype}: they must be equal"
            )


# ---- fake: shapes and memory formats ---------------------------------------------------------


@torch.library.register_fake("deform_conv::forward")
def _forward_fake(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    fast_float32: bool = False,
) -> Tensor:
    shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
    return torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input)
    )


@torch.library.register_fake("deform_conv::backward")
def _backward_fake(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    needs_input: bool = True,
    needs_weight: bool = True,
    fast_float32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def gradient(tensor: Tensor | None) -> Tensor:
        if tensor is None:
            return offset.new_empty(0)
        return torch.empty_like(tensor, memory_format=memory_format(tensor))

    return (
        gradient(input) if needs_input else input.new_empty(0),
        gradient(offset),
        gradient(weight) if needs_weight else weight.new_empty(0),
        gradient(mask),
    )


# ---- autograd --------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.settings = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    needs_input, needs_offset, needs_weight, needs_bias, needs_mask, *_ = ctx.needs_input_grad
    grads: tuple[Tensor | None, ...] = (None,) * 4
    if needs_input or needs_offset or needs_weight or needs_mask:
        stride, padding, dilation, fast_float32 = ctx.settings
        grads = torch.ops.deform_conv.backward(
            grad_output, input, offset, weight, mask, stride, padding, dilation,
            needs_input, needs_weight, fast_float32,
        )  # fmt: skip
    grad_input, grad_offset, grad_weight, grad_mask = grads
    return (
        grad_input if needs_input else None,
        grad_offset if needs_offset else None,
        grad_weight if needs_weight else None,
        _sum_over_positions(grad_output) if needs_bias else None,
        grad_mask if needs_mask else None,
        *[None] * 4,
    )


def _sum_over_positions(grad_output: Tensor) -> Tensor:
    """Return the gradient of the bias, in an order that does not depend on the number of threads.

    A single `sum` would divide the positions among the threads if there is only one channel.
    """
    wide = torch.promote_types(grad_output.dtype, torch.float32)
    return grad_output.sum(3, dtype=wide).sum((0, 2)).to(grad_output.dtype)


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("deform_conv2d has no double backward")


torch.library.register_autograd("deform_conv::forward", _backward, setup_context=_save)
torch.library.register_autograd("deform_conv::backward", _double_backward)


# ---- flops: those of a convolution, without the sampling -------------------------------------


@register_flop_formula(torch.ops.deform_conv.forward)
def _forward_flops(
    input: list[int], offset: list[int], weight: list[int], *others: Any, out_shape: list[int]
) -> int:
    return conv_flop_count(input, weight, out_shape)


@register_flop_formula(torch.ops.deform_conv.backward)
def _backward_flops(
    grad_output: list[int],
    input: list[int],
    offset: list[int],
    weight: list[int],
    *others: Any,
    out_shape: Any,
) -> int:
    return 2 * conv_flop_count(input, weight, grad_output)


# ---- autocast: features in the low precision, locations in float32 ----------------------------


def _autocast(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    fast_float32: bool = False,
) -> Tensor:
    device_type = input.device.type
    # float64 stays float64, as in all operators under autocast.
    dtype = input.dtype if input.dtype == torch.float64 else torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        return torch.ops.deform_conv.forward(
            input.to(dtype),
            offset,
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            mask,
            stride,
            padding,
            dilation,
            fast_float32,
        )


_LIBRARY = torch.library.Library("deform_conv", "FRAGMENT")
_LIBRARY.impl("forward", _autocast, "AutocastCPU")
_LIBRARY.impl("forward", _autocast, "AutocastCUDA")
