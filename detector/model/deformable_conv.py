"""A deformable convolution that predicts its own offsets: it replaces a 3x3 `nn.Conv2d`.

    offsets, mask logits = conv_offset(input)        (N, 2 G K, Ho, Wo), (N, G K, Ho, Wo)
    output = deform_conv2d(input, offsets, weight, mask)

K is the number of taps, G the number of offset groups. `conv_offset` has the kernel size, stride,
padding and dilation of the convolution itself. Its weights and bias start at zero, so that a new
layer computes the same as the plain convolution; for v2 this needs a mask that starts at 1. The
names of the parameters (`weight`, `conv_offset.weight`, `conv_offset.bias`) and the order of the
offset channels are those of mmdetection.
"""

import torch
from torch import Tensor, nn

from ops import DeformConv2d


class DeformableConv2d(DeformConv2d):
    """Deformable convolution v1 or v2 with a zero-initialised offset convolution.

    Args:
        modulated: True for v2, with a mask value for each tap; False for v1.
        offset_groups: the number of groups of input channels that have offsets of their own.
        mask_start: the mask of a new layer, in (0, 1]: 0.5 as in the paper (a sigmoid at zero), or
            1 to start as the plain convolution. The mask is `2 * mask_start * sigmoid`.
        offset_limit: the bound on the absolute value of each offset, in pixels of the input. An
            offset x becomes `limit * tanh(x / limit)`, which leaves small offsets nearly
            unchanged. With None, offsets are not bounded.
        others: as for `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        bias: bool,
        modulated: bool,
        offset_groups: int,
        mask_start: float,
        offset_limit: float | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        if in_channels % offset_groups:
            raise ValueError(
                f"deform.offset_groups={offset_groups} does not divide {in_channels} channels"
            )
        self.num_offsets = 2 * offset_groups * kernel_size[0] * kernel_size[1]
        self.num_masks = self.num_offsets // 2 if modulated else 0
        self.mask_start = mask_start
        self.offset_limit = offset_limit
        self.conv_offset = nn.Conv2d(
            in_channels,
            self.num_offsets + self.num_masks,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve the input (N, C, H, W) and return (N, O, Ho, Wo)."""
        offset, mask = self.offsets(input)
        return super().forward(input, offset, mask)

    def offsets(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict the offsets (N, 2 G K, Ho, Wo) in pixels and, for v2, the mask (N, G K, Ho, Wo).

        Both are computed in float32 even under autocast, because bfloat16 would round an offset of
        4 by up to 1/64 pixel.
        """
        with torch.autocast(input.device.type, enabled=False):
            predicted = self.conv_offset(input.to(self.weight.dtype))
        return self.split(predicted)

    def split(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn the output of `conv_offset` into the offsets and the mask that `offsets` returns."""
        offset, mask = predicted, None
        if self.num_masks:
            offset, logits = predicted.split([self.num_offsets, self.num_masks], dim=1)
            mask = logits.sigmoid()
            if self.mask_start != 0.5:
                mask = 2 * self.mask_start * mask
        if self.offset_limit is not None:
            offset = self.offset_limit * torch.tanh(offset / self.offset_limit)
        return offset, mask


def deformable_like(
    conv: nn.Conv2d,
    *,
    modulated: bool,
    offset_groups: int,
    mask_start: float,
    offset_limit: float | None = None,
) -> DeformableConv2d:
    """Build the deformable layer that replaces a convolution, with the same weights.

    The state of the random generator is restored, so that layers built later get the same initial
    weights in a plain and in a deformable network.
    """
    with torch.random.fork_rng(devices=[]):
        layer = _new_layer_like(conv, modulated, offset_groups, mask_start, offset_limit)
    layer.load_state_dict(conv.state_dict() | layer.conv_offset.state_dict(prefix="conv_offset."))
    return layer


def _new_layer_like(
    conv: nn.Conv2d,
    modulated: bool,
    offset_groups: int,
    mask_start: float,
    offset_limit: float | None,
) -> DeformableConv2d:
    assert isinstance(conv.padding, tuple)
    return DeformableConv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=(conv.padding[0], conv.padding[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        bias=conv.bias is not None,
        modulated=modulated,
        offset_groups=offset_groups,
        mask_start=mask_start,
        offset_limit=offset_limit,
    )
