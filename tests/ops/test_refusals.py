"""A message that refuses an argument has its name, what was given and what was expected."""

import pytest
import torch
from cases import UGLY, make

from ops import DeformConv2d, deform_conv2d

WRONG = {
    "input of 3 dimensions": (
        {"input": torch.ones(6, 5, 7)},
        r"input must be \(N, C, H, W\), got \(6, 5, 7\)",
    ),
    "input not a tensor": ({"input": [1.0]}, "input must be a tensor, got list"),
    "no offset": ({"offset": None}, "offset must be a tensor, got NoneType"),
    "bias not a tensor": ({"bias": 0.5}, "bias must be a tensor or None, got float"),
    "bias is a flag": ({"bias": True}, "bias must be a tensor or None, got bool"),
    "bias of weights": (
        {"bias": torch.ones(4, 3, 3, 2)},
        r"bias must have shape \(4,\), got \(4, 3, 3, 2\)",
    ),
    "bias dtype": (
        {"bias": torch.ones(4, dtype=torch.bfloat16)},
        "bias is torch.bfloat16, input is torch.float64: they must be equal",
    ),
    "offset channels": (
        {"offset": torch.ones(2, 13, 2, 6)},
        r"offset must have shape \(2, 12, 2, 6\) for 1 offset group\(s\) of 6 taps, "
        r"got \(2, 13, 2, 6\)",
    ),
    "offset of 3 dimensions": (
        {"offset": torch.ones(36, 2, 6)},
        r"offset must have shape \(2, 12, 2, 6\) .*, got \(36, 2, 6\)",
    ),
    "boolean mask": (
        {"mask": torch.ones(2, 18, 2, 6, dtype=torch.bool)},
        "mask must be floating point, got torch.bool",
    ),
    "mask of another size": (
        {"mask": torch.ones(2, 18, 2, 5)},
        r"mask must have shape \(2, 18, 2, 6\), got \(2, 18, 2, 5\)",
    ),
    "mask device": (
        {"mask": torch.ones(2, 18, 2, 6, device="meta")},
        "mask is on meta, input on cpu: they must be on one device",
    ),
    "complex offset": (
        {"offset": torch.ones(2, 36, 2, 6, dtype=torch.complex64)},
        "offset must be floating point, got torch.complex64",
    ),
    "empty kernel": (
        {"weight": torch.ones(4, 3, 0, 2)},
        r"weight \(4, 3, 0, 2\) has an empty kernel",
    ),
    "three strides": ({"stride": (1, 2, 3)}, r"stride must be one or two .*, got \(1, 2, 3\)"),
    "half a stride": ({"stride": 0.5}, "stride must be one or two integers, got 0.5"),
    "padding by name": ({"padding": "same"}, "padding must be one or two integers, got 'same'"),
    "fractional dilation": ({"dilation": (1, 2.0)}, r"dilation must .*, got \(1, 2.0\)"),
    "negative padding": ({"padding": -1}, r"padding \(-1, -1\) must not be negative"),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_names_what_came_and_what_was_expected(change: dict, message: str) -> None:
    steps = dict(zip(("stride", "padding", "dilation"), UGLY.steps, strict=True))
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**(make(UGLY) | steps | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kernel_size": 2.5}, "kernel_size must be one or two integers, got 2.5"),
        ({"stride": (1, 1, 1)}, r"stride must be one or two integers, got \(1, 1, 1\)"),
        ({"groups": 0}, "divisible by groups 0"),
        ({"groups": 4}, "in_channels 6 and out_channels 4 must be divisible by groups 4"),
    ],
)
def test_the_module_refuses_when_it_is_built(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeformConv2d(**({"in_channels": 6, "out_channels": 4, "kernel_size": 3} | change))
