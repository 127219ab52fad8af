"""The operators as ONNX's own `DeformConv` and `RoiAlign`, for `torch.onnx.export(dynamo=True)`.

`ops.deform_conv2d` and `ops.deform_roi_pool` call these functions during an export, so exporting a
module only requires opset 19 or later. In a program that `torch.export.export` captured before,
replace the operators first:

    program = program.run_decompositions({
        torch.ops.deform_conv.forward.default: deform_conv,
        torch.ops.deform_roi_pool.forward.default: roi_align,
    })

Within torch, such a node is a placeholder that returns zeros. To check an export, therefore, do not
use `verify=True`, but compare a runtime's result with the module's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    fast_float32: bool = False,
) -> Tensor:
    """Return a `DeformConv` node of an ONNX graph.

    The arguments are those of `torch.ops.deform_conv.forward`. ONNX requires all tensors of the
    node to have one dtype. It is that of the offsets, because bfloat16 offsets would miss their
    pixels: features of lower precision are cast to it, and the output is cast back.

    Source: https://onnx.ai/onnx/operators/onnx__DeformConv.html
    """
    channels, (out_channels, group_channels, kernel_h, kernel_w) = input.shape[1], weight.shape
    dtype = offset.dtype
    output = torch.onnx.ops.symbolic(
        "DeformConv",
        (
            input.to(dtype),
            weight.to(dtype),
            offset,
            None if bias is None else bias.to(dtype),
            mask,
        ),
        {
            "dilations": list(dilation),
            "group": channels // group_channels,
            "kernel_shape": [kernel_h, kernel_w],
            "offset_group": offset.shape[1] // (2 * kernel_h * kernel_w),
            "pads": [*padding, *padding],  # top, left, bottom, right
            "strides": list(stride),
        },
        dtype=dtype,
        shape=(input.shape[0], out_channels, *offset.shape[2:]),
        version=19,
    )
    return output.to(input)  # also to its device: the placeholder is on the CPU


def roi_align(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    gamma: float,
) -> Tensor:
    """Return a `RoiAlign` node of an ONNX graph.

    The arguments are those of `torch.ops.deform_roi_pool.forward`. As in `deform_conv`, features of
    lower precision are cast to the dtype of the boxes, and the output is cast back.

    Raises:
        NotImplementedError: there is an offset or a mask, which no ONNX operator supports.

    Source: https://onnx.ai/onnx/operators/onnx__RoiAlign.html
    """
    if offset is not None or mask is not None:
        raise NotImplementedError(
            "ONNX has no deformable RoI pooling: only deform_roi_pool without offset and mask, "
            "which is RoIAlign, can be exported"
        )
    dtype = boxes.dtype
    output = torch.onnx.ops.symbolic(
        "RoiAlign",
        (input.to(dtype), boxes[:, 1:], boxes[:, 0].to(torch.int64)),
        {
            "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
            "mode": "avg",
            "output_height": output_size[0],
            "output_width": output_size[1],
            "sampling_ratio": max(sampling_ratio, 0),
            "spatial_scale": spatial_scale,
        },
        dtype=dtype,
        shape=(boxes.shape[0], input.shape[1], *output_size),
        version=16,
    )
    return output.to(input)
