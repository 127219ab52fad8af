"""Deformable convolution as ONNX's standard `DeformConv`, for `torch.onnx.export(dynamo=True)`.

`ops.deform_conv2d` calls this by itself while torch exports, so that exporting a module needs no
more than opset 19 or later. A program that was captured before, by `torch.export.export`, is told:

    program = program.run_decompositions({torch.ops.deform_conv.forward.default: deform_conv})

torch itself sees a placeholder that is all zeros: compare a runtime's result with the module's, not
with `verify=True`.
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
    split_float32: bool = False,
) -> Tensor:
    """What `torch.ops.deform_conv.forward` is, with its arguments, as a node of an ONNX graph.

    ONNX allows one type only. It is that of the offsets, to which lower features are cast, since
    bfloat16 offsets would miss their pixels; the output is cast back.

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
    return output.to(input)  # the placeholder is on the CPU
