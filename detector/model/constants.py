"""Tensors that depend on sizes alone: they are computed, and copied to a GPU, once."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


def constant(kept: Callable[..., Tensor], *arguments: Hashable) -> Tensor:
    """Return the result of a function with an `lru_cache`; it must not be changed in place.

    A result that is first computed in inference mode can be used in training later.
    """
    compute = kept
    if torch.compiler.is_compiling():  # an export has no real tensors, which could be kept
        compute = kept.__wrapped__  # type: ignore[attr-defined]
    with torch.inference_mode(False):
        return compute(*arguments)
