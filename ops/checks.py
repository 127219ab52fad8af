"""The checks of the arguments that a user passes to the operators."""

import operator

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ops import libraries


def pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Convert one integer or two to (vertical, horizontal).

    Raises:
        ValueError: `value` is not one or two integers.
    """
    both = value if isinstance(value, tuple | list) else (value, value)
    try:
        vertical, horizontal = map(operator.index, both)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be one or two integers, got {value!r}") from None
    return vertical, horizontal


def check_tensors(required: dict[str, object], optional: dict[str, object]) -> None:
    """Raise ValueError unless all values are tensors; optional ones may be None."""
    for name, value in {**required, **optional}.items():
        if not (isinstance(value, Tensor) or name in optional and value is None):
            expected = "a tensor or None" if name in optional else "a tensor"
            raise ValueError(f"{name} must be {expected}, got {type(value).__name__}")


def check_kinds(input: Tensor, others: dict[str, Tensor | None]) -> None:
    """Raise ValueError unless the dtypes and devices are supported and fit together.

    All tensors must be floating point and on the input's device. The operators must support the
    input's dtype, and their library for the device must be loaded.
    """
    if input.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise ValueError(
                f"{name} is on {tensor.device}, input on {input.device}: they must be on one device"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if input.is_cuda and libraries.cuda_missing is not None:
        raise ValueError(
            f"input is on {input.device}, but the operator's CUDA library is not there: "
            f"{libraries.cuda_missing}; {libraries.COMMAND}"
        )


def location_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of offsets, masks and boxes: float64 if the features are, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the tensor's memory format: channels-last or NCHW. Results and gradients keep it."""
    is_channels_last = tensor.stride(1) == 1 and not tensor.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def refuse_forward_mode(operator: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError if a tensor has a tangent.

    torch would silently drop the tangents of a custom operator's inputs.
    """
    if any(t is not None and unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(f"{operator} has no forward-mode derivative (jvp)")
