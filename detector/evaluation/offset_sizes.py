"""Measure how far the offsets of deformable layers reach in a forward pass, to notice runaway ones.

    sizes = OffsetSizes()
    with sizes.watching(model):
        detect(model, ...)
    sizes.summary()["layer4.0.conv1"]  # LayerSizes(mean=0.4, p99=2.1, largest=5.7, side=8.0)

The length of an offset is the norm of its vector (dy, dx), in pixels of the layer's input. Lengths
are counted in a histogram, in which each bin is two per cent wider than the one before. The memory
therefore does not depend on the number of images, and the counts of several processes can be added.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.model.deformable_conv import DeformableConv2d

EDGES = 2.0**-10 * 1.02 ** np.arange(850)  # edges of the bins in pixels, up to 20 000
BODY = re.compile(r"^(module\.)?backbone\.body\.")  # the common prefix of the layers' names


def p99_of(bins: np.ndarray) -> float:
    """Return the 99th percentile of the lengths counted in the bins of `EDGES`, within 2 %."""
    reached = int(np.searchsorted(np.cumsum(bins), 0.99 * bins.sum()))
    return float(EDGES[min(reached, len(EDGES) - 1)]) if reached else 0.0


@dataclass(frozen=True)
class LayerSizes:
    """Lengths of one layer's offsets, in pixels of its input.

    Attributes:
        mean: the mean length.
        p99: the 99th percentile of the lengths, within 2 %.
        largest: the largest length.
        side: the shorter side of the layer's output in pixels, as the mean over the images.
    """

    mean: float
    p99: float
    largest: float
    side: float


@dataclass
class _Counts:
    bins: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) + 1, dtype=np.int64))
    total: float = 0.0
    largest: float = 0.0
    sides: float = 0.0
    num_images: int = 0

    def add(self, other: "_Counts") -> None:
        self.bins += other.bins
        self.total += other.total
        self.largest = max(self.largest, other.largest)
        self.sides += other.sides
        self.num_images += other.num_images

    def sizes(self) -> LayerSizes:
        number = int(self.bins.sum())
        return LayerSizes(
            mean=self.total / max(number, 1),
            p99=min(p99_of(self.bins), self.largest),
            largest=self.largest,
            side=self.sides / max(self.num_images, 1),
        )


class OffsetSizes:
    """Collects the lengths of the offsets of every deformable layer."""

    def __init__(self) -> None:
        self._layers: dict[str, _Counts] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Count the offsets of everything that runs through the model in this context."""
        handles = [
            layer.conv_offset.register_forward_hook(self._hook(BODY.sub("", name), layer))
            for name, layer in model.named_modules()
            if isinstance(layer, DeformableConv2d)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, other: "OffsetSizes") -> None:
        """Add the counts of another process."""
        for name, counts in other._layers.items():
            self._layers.setdefault(name, _Counts()).add(counts)

    def summary(self) -> dict[str, LayerSizes]:
        """Return the lengths of each layer by its name in the backbone, from input to output."""
        return {name: counts.sizes() for name, counts in self._layers.items()}

    def _hook(self, name: str, layer: DeformableConv2d) -> Any:
        @torch.compiler.disable
        def count(module: nn.Module, inputs: Any, predicted: Tensor) -> None:
            offset, _ = layer.split(predicted.detach())
            lengths = torch.linalg.vector_norm(offset.float().unflatten(1, (-1, 2)), dim=2)
            found = lengths[lengths.isfinite()].cpu().numpy()
            of_layer = self._layers.setdefault(name, _Counts())
            of_layer.add(
                _Counts(
                    np.bincount(np.searchsorted(EDGES, found), minlength=len(EDGES) + 1),
                    float(found.sum(dtype=np.float64)),
                    float(found.max(initial=0)),
                    float(len(predicted) * min(predicted.shape[-2:])),
                    len(predicted),
                )
            )

        return count
