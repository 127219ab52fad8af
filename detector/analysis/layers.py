"""Records where the 3x3 convolutions of a backbone sample their input, for one image.

    with record_layers(model) as layers:
        model([image])
    layers["layer4.0.conv2"].places()      # (G, K, 2, Ho, Wo) (y, x) in pixels of the layer's input

A plain convolution is treated as a deformable one whose offsets are zero.

G: offset groups, K: taps of the kernel (row-major), (Ho, Wo): the size of the layer's output,
(H, W): the size of its input. Cell (i, j) of a feature map of stride s is centred on pixel
(s i, s j) of the image that the network sees; `coordinates.py` converts this to the image file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from detector.model.deformable_conv import DeformableConv2d

SIDE = 3  # taps along each side of a kernel


@dataclass(frozen=True)
class Layer:
    """What one convolution did in one forward pass.

    Attributes:
        name: the convolution's name in the backbone, such as `layer4.0.conv2`.
        offsets: float32 (G, K, 2, Ho, Wo) as (dy, dx) in pixels of the layer's input, zeros for a
            plain convolution.
        masks: float32 (G, K, Ho, Wo), ones for a convolution without masks.
        input_size: (H, W).
    """

    name: str
    offsets: np.ndarray
    masks: np.ndarray
    input_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    is_deformable: bool
    is_modulated: bool

    @property
    def output_size(self) -> tuple[int, int]:
        height, width = self.offsets.shape[-2:]
        return height, width

    def grid(self) -> np.ndarray:
        """Return where the layer would sample without offsets: (y, x), float64 (K, 2, Ho, Wo)."""
        return self.taps(np.indices(self.output_size))

    def taps(self, cells: np.ndarray) -> np.ndarray:
        """Return where the outputs at some cells would sample without offsets.

        Args:
            cells: (2, ...) as (y, x); they need not be whole numbers.

        Returns:
            float64 (K, 2, ...), (y, x) in pixels of the layer's input.
        """
        tap = np.stack(np.meshgrid(*[range(SIDE)] * 2, indexing="ij")).reshape(2, -1).T  # (K, 2)
        ahead = tap * self.dilation - np.array(self.padding)
        start = cells * np.array(self.stride).reshape(2, *[1] * (cells.ndim - 1))
        places: np.ndarray = start + ahead.reshape(*ahead.shape, *[1] * (cells.ndim - 1))
        return places.astype(np.float64)

    def places(self) -> np.ndarray:
        """Return where the layer samples: (y, x), float64 (G, K, 2, Ho, Wo)."""
        return self.grid() + self.offsets

    def effective_dilation(self) -> np.ndarray:
        """Return the effective dilation (Ho, Wo) (Dai et al. 2017, section 4.2).

        It is the mean distance between neighbouring sampling places of the kernel, averaged over
        the offset groups. For a plain convolution it equals the dilation.
        """
        places = self.places().reshape(-1, SIDE, SIDE, 2, *self.output_size)
        down = np.linalg.norm(np.diff(places, axis=1), axis=3).reshape(-1, *self.output_size)
        right = np.linalg.norm(np.diff(places, axis=2), axis=3).reshape(-1, *self.output_size)
        mean: np.ndarray = np.concatenate([down, right]).mean(axis=0)
        return mean


@contextmanager
def record_layers(model: FasterRCNN) -> Iterator[dict[str, Layer]]:
    """Record every 3x3 convolution of the backbone's stages while the model runs on one image.

    Yields:
        A dictionary that is filled as the model runs: name of a convolution -> its `Layer`, from
        the network's input to its output.
    """
    layers: dict[str, Layer] = {}
    handles = [
        module.register_forward_hook(_hook(layers, name))
        for name, module in convolutions(model).items()
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def convolutions(model: FasterRCNN) -> dict[str, nn.Conv2d | DeformableConv2d]:
    """Return the 3x3 convolutions of the backbone's stages, plain and deformable, by their name.

    The names are those in the backbone. The convolutions that predict offsets are not included.
    """
    body: nn.Module = model.backbone.body
    offsets = {id(m.conv_offset) for m in body.modules() if isinstance(m, DeformableConv2d)}
    return {
        name: module
        for name, module in body.named_modules()
        if name.startswith("layer")
        and isinstance(module, (nn.Conv2d, DeformableConv2d))
        and module.kernel_size == (SIDE, SIDE)
        and id(module) not in offsets
    }


def _hook(layers: dict[str, Layer], name: str) -> Any:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, DeformableConv2d))
        (input,) = inputs
        height, width = output.shape[-2:]
        taps = SIDE * SIDE
        offset, mask = torch.zeros(2 * taps, height, width), None
        if isinstance(module, DeformableConv2d):
            with torch.no_grad():
                offsets, masks = module.offsets(input[:1])
            offset, mask = offsets[0], None if masks is None else masks[0]
        groups = len(offset) // (2 * taps)
        layers[name] = Layer(
            name,
            offset.float().cpu().numpy().reshape(groups, taps, 2, height, width),
            np.ones((groups, taps, height, width), dtype=np.float32)
            if mask is None
            else mask.float().cpu().numpy().reshape(groups, taps, height, width),
            (input.shape[-2], input.shape[-1]),
            _pair(module.stride),
            _pair(module.padding),
            _pair(module.dilation),
            isinstance(module, DeformableConv2d),
            mask is not None,
        )

    return record


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
