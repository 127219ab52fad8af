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


class _Counter:
    """Counts the lengths of one layer's offsets on its device. The host waits for the device only
    in `counts`: a wait in every layer would let the device run idle.
    """

    def __init__(self, layer: DeformableConv2d) -> None:
        device = layer.conv_offset.weight.device
        self.layer = layer
        self.edges = torch.from_numpy(EDGES).to(device)
        # The last bin counts the lengths that are not finite.
        self.bins = torch.zeros(len(EDGES) + 2, dtype=torch.int64, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.largest = torch.zeros((), device=device)
        self.sides = 0.0
        self.num_images = 0

    @torch.compiler.disable
    def count(self, module: nn.Module, inputs: Any, predicted: Tensor) -> None:
        """Count the offsets that `conv_offset` predicted, (N, C, Ho, Wo); a forward hook."""
        offset, _ = self.layer.split(predicted.detach())
        lengths = torch.linalg.vector_norm(offset.float().unflatten(1, (-1, 2)), dim=2).flatten()
        is_finite = lengths.isfinite()
        bins = torch.bucketize(lengths.double(), self.edges).where(is_finite, len(EDGES) + 1)
        lengths = lengths.where(is_finite, 0)
        self.bins.index_add_(0, bins, torch.ones_like(bins))
        self.total += lengths.sum(dtype=torch.float64)
        self.largest = self.largest.maximum(lengths.max())
        self.sides += len(predicted) * min(predicted.shape[-2:])
        self.num_images += len(predicted)

    def counts(self) -> _Counts:
        return _Counts(
            self.bins[:-1].cpu().numpy(),
            self.total.item(),
            self.largest.item(),
            self.sides,
            self.num_images,
        )


class OffsetSizes:
    """Collects the lengths of the offsets of every deformable layer."""

    def __init__(self) -> None:
        self._layers: dict[str, _Counts] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Count the offsets of everything that runs through the model in this context."""
        counters = {
            BODY.sub("", name): _Counter(layer)
            for name, layer in model.named_modules()
            if isinstance(layer, DeformableConv2d)
        }
        handles = [
            counter.layer.conv_offset.register_forward_hook(counter.count)
            for counter in counters.values()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, counter in counters.items():
            if counter.num_images:
                self._layers.setdefault(name, _Counts()).add(counter.counts())

    def add(self, other: "OffsetSizes") -> None:
        """Add the counts of another process."""
        for name, counts in other._layers.items():
            self._layers.setdefault(name, _Counts()).add(counts)

    def summary(self) -> dict[str, LayerSizes]:
        """Return the lengths of each layer by its name in the backbone, from input to output."""
        return {name: counts.sizes() for name, counts in self._layers.items()}
