"""Measures what deformable layers have learned, over a validation set.

The docstring of `__main__.py` explains the numbers.

M: objects of an image, N: values, (H, W): the size of a feature map.
"""

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torchvision.models.detection import FasterRCNN
from tqdm import tqdm

from detector.analysis.coordinates import cells_at
from detector.analysis.layers import Layer, record_layers
from detector.data.dataset import DetectionDataset
from detector.evaluation.coco_matches import size_name
from detector.evaluation.inference import to_float
from detector.evaluation.offset_sizes import EDGES, p99_of

PLACES = ("small", "medium", "large", "background")


@dataclass
class _Moments:
    """Count, sum and sum of squares of numbers that arrive one array after the other."""

    number: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add values (..., N), and sum them over the last axis."""
        self.number += values.shape[-1]
        self.total = self.total + values.sum(axis=-1, dtype=np.float64)
        self.squares = self.squares + np.square(values, dtype=np.float64).sum(axis=-1)

    @property
    def mean(self) -> Any:
        return self.total / max(self.number, 1)

    @property
    def variance(self) -> Any:
        return np.maximum(self.squares / max(self.number, 1) - self.mean**2, 0.0)


@dataclass
class _LayerSums:
    """Running sums of what one layer has sampled so far."""

    dilations: dict[str, _Moments] = field(default_factory=lambda: defaultdict(_Moments))
    offsets: _Moments = field(default_factory=_Moments)  # per channel: dy and dx of each tap
    masks: _Moments = field(default_factory=_Moments)  # per tap: mask - 1
    lengths: _Moments = field(default_factory=_Moments)
    bins: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) + 1, dtype=np.int64))
    outside: _Moments = field(default_factory=_Moments)
    grid_outside: _Moments = field(default_factory=_Moments)


@dataclass(frozen=True)
class Dilation:
    """Effective dilation over `number` places: mean and standard deviation, None for 0 places."""

    mean: float | None
    deviation: float | None
    number: int


@dataclass(frozen=True)
class LayerStatistics:
    """What one layer has learned. Lengths are in pixels of its input, shares are in 0..1.

    Attributes:
        dilation: the effective dilation for each of `PLACES`.
        outside, grid_outside: the share of sampling places outside the feature map, which is more
            than half a pixel beyond its outermost pixels: with the layer's offsets, and without.
        offsets_by_place, masks_by_place: how much they depend on the place in the image; None if
            all offsets are 0, or all masks are 1.
    """

    is_deformable: bool
    dilation: dict[str, Dilation]
    offset_mean: float
    offset_p99: float
    outside: float
    grid_outside: float
    offsets_by_place: float | None
    mask_mean: float
    mask_deviation: float
    masks_by_place: float | None


@torch.no_grad()
def measure_layers(
    model: FasterRCNN, dataset: DetectionDataset, *, device: torch.device, max_images: int
) -> dict[str, LayerStatistics]:
    """Measure the layers of a model on the first images of a data set, one image at a time.

    The model is left in evaluation mode.

    Args:
        max_images: the largest number of images to use.

    Returns:
        Name of a 3x3 convolution in the backbone -> what it has learned.
    """
    model.eval()
    sums: dict[str, _LayerSums] = defaultdict(_LayerSums)
    kinds: dict[str, bool] = {}
    for index in tqdm(range(min(max_images, len(dataset))), disable=None, leave=False):
        sample = dataset[index]
        image = to_float(sample["image"], device)
        with record_layers(model) as layers:
            images, _ = model.transform([image])
            model.backbone(images.tensors)
        size, padded = images.image_sizes[0], images.tensors.shape[-2:]
        scale = np.array(size) / np.array(image.shape[-2:])
        for name, layer in layers.items():
            kinds[name] = layer.is_deformable
            stride = np.array(padded) / np.array(layer.output_size)
            _add(sums[name], layer, sample, stride, scale, np.array(size) / stride)
    return {name: _statistics(of_layer, kinds[name]) for name, of_layer in sums.items()}


def _add(
    sums: _LayerSums,
    layer: Layer,
    sample: Any,
    stride: np.ndarray,
    scale: np.ndarray,
    num_cells: np.ndarray,
) -> None:
    """Add one image to the sums of one layer.

    Args:
        stride, scale: of the layer's output, as `cells_at` takes them.
        num_cells: (2,), the rows and columns of the output that the image covers; the rest is
            padding.
    """
    dilation = layer.effective_dilation()
    height, width = np.minimum(np.ceil(num_cells).astype(int), layer.output_size)
    corners = sample["boxes"].numpy().reshape(-1, 2, 2)[:, :, ::-1]  # (y, x)
    boxes = cells_at(corners, stride, scale)
    for box, area, crowd in zip(
        boxes, sample["area"].tolist(), sample["iscrowd"].tolist(), strict=True
    ):
        if crowd:
            continue
        y, x = np.clip(np.rint(box.mean(axis=0)).astype(int), 0, (height - 1, width - 1))
        name = size_name(area)
        sums.dilations[name].add(dilation[y, x].reshape(1))
    sums.dilations["background"].add(dilation[:height, :width][_outside(boxes, height, width)])

    offsets = layer.offsets[..., :height, :width]
    groups, taps = offsets.shape[:2]
    lengths = np.linalg.norm(offsets, axis=2)
    sums.offsets.add(offsets.reshape(groups * taps * 2, -1))
    sums.masks.add(layer.masks[..., :height, :width].reshape(groups * taps, -1) - 1)
    sums.lengths.add(lengths.reshape(-1))
    found = np.searchsorted(EDGES, lengths[np.isfinite(lengths)])
    sums.bins += np.bincount(found, minlength=len(EDGES) + 1)
    sides = np.array(layer.input_size)[:, None, None]
    for moments, places in (
        (sums.outside, layer.places()),
        (sums.grid_outside, np.broadcast_to(layer.grid(), layer.offsets.shape)),
    ):
        places = places[..., :height, :width]
        moments.add(((places < -0.5) | (places > sides - 0.5)).any(axis=2).reshape(-1))


def _outside(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return which cells, bool (H, W), have their centre in none of the boxes (M, 2, 2).

    Args:
        boxes: the corners as (y, x), in cells.
    """
    y, x = np.indices((height, width))
    free = np.ones((height, width), dtype=bool)
    for (top, left), (bottom, right) in boxes:
        free &= ~((y >= top) & (y <= bottom) & (x >= left) & (x <= right))
    return free


def _statistics(sums: _LayerSums, is_deformable: bool) -> LayerStatistics:
    return LayerStatistics(
        is_deformable=is_deformable,
        dilation={place: _dilation(sums.dilations[place]) for place in PLACES},
        offset_mean=float(sums.lengths.mean),
        offset_p99=p99_of(sums.bins),
        outside=float(sums.outside.mean),
        grid_outside=float(sums.grid_outside.mean),
        offsets_by_place=_by_place(sums.offsets),
        mask_mean=float(np.mean(sums.masks.mean)) + 1,
        mask_deviation=float(np.sqrt(np.mean(sums.masks.variance))),
        masks_by_place=_by_place(sums.masks),
    )


def _dilation(moments: _Moments) -> Dilation:
    if moments.number == 0:
        return Dilation(None, None, 0)
    return Dilation(float(moments.mean), float(np.sqrt(moments.variance)), moments.number)


def _by_place(moments: _Moments) -> float | None:
    squares = float(np.sum(moments.squares)) / max(moments.number, 1)
    return float(np.sum(moments.variance)) / squares if squares else None


def as_json(layers: dict[str, LayerStatistics]) -> dict[str, Any]:
    """Convert to dictionaries and lists that json.dumps accepts."""
    return {name: asdict(layer) for name, layer in layers.items()}
