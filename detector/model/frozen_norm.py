"""Batch norm whose statistics and weights are constants.

    output = input * scale + shift
    scale = weight / sqrt(running_var + eps),  shift = bias - running_mean * scale

torchvision computes scale and shift in every forward pass, in five operators for each layer. On a
GPU, launching these takes longer than the rest of the layer. Here they are computed again only
after a buffer has changed.
"""

from typing import Any

import torch
import torchvision
from torch import Tensor


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's layer, with the same results; it maps (N, C, H, W) to the same shape.

    A change of a buffer is noticed if it replaces the tensor, as `to(device)` does, or is counted
    in the tensor's version, as in-place operators and `load_state_dict` do. Writing to
    `buffer.data` is not noticed.
    """

    def __init__(self, num_features: int, eps: float) -> None:
        super().__init__(num_features, eps)
        self._computed: tuple[list[Tensor], list[int], Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        buffers = list(self._buffers.values())
        if torch.compiler.is_compiling() or any(one.is_inference() for one in buffers):
            normalised: Tensor = super().forward(x)  # a compiler fuses it; no versions in inference
            return normalised
        scale, shift = self._scale_and_shift(buffers)
        return x * scale + shift

    def _scale_and_shift(self, buffers: list[Tensor]) -> tuple[Tensor, Tensor]:
        versions = [one._version for one in buffers]
        if self._computed is not None:
            known, known_versions, scale, shift = self._computed
            if versions == known_versions and all(map(lambda a, b: a is b, buffers, known)):
                return scale, shift
        with torch.inference_mode(False):  # so that a later backward pass may keep them
            weight, bias, mean, variance = (one.reshape(1, -1, 1, 1) for one in buffers)
            scale = weight * (variance + self.eps).rsqrt()
            shift = bias - mean * scale
        self._computed = buffers, versions, scale, shift
        return scale, shift

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was computed out of copies and pickles, whose buffers have other versions."""
        return self.__dict__ | {"_computed": None}
