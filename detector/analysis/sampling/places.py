"""The places that consecutive convolutions sample for one output, and the gradient that reaches it.

Between two 3x3 convolutions of a ResNet there are 1x1 convolutions and sums alone, so that a place
of one's input is a place of the output of the one before.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from detector.analysis.layers import Layer, convolutions, sampling

DEPTH = 3  # layers, as in the paper's figure


@dataclass(frozen=True)
class Look:
    """At one point of an image; places are (x, y) in pixels of the image file.

    Attributes:
        point: (x, y).
        places: (P, 2), of which P = 9^3 for three layers of one offset group.
        weights: (P,) the product of the masks on the way, 1 for plain convolutions.
        grid: (P, 2), the same without offsets.
        field: float32 (H, W), the size of the gradient at each pixel of the image as the network
            sees it; it adds up to 1.
    """

    point: tuple[float, float]
    places: np.ndarray
    weights: np.ndarray
    grid: np.ndarray
    field: np.ndarray


def last_layers(layers: dict[str, Layer]) -> list[Layer]:
    """The last three deformable ones or, where there are none, the last three."""
    deformable = [layer for layer in layers.values() if layer.is_deformable]
    return (deformable or list(layers.values()))[-DEPTH:]


def trace(layers: list[Layer], cell: np.ndarray, *, plain: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where layers, from the input to the output, sample for a cell (2,) of the last one's output.

    Offsets at a place between cells are those of the nearest one; all offset groups count.

    Args:
        plain: leave offsets and masks out.

    Returns:
        Places (P, 2) in the first one's input, (y, x), and their weights (P,).
    """
    places, weights = cell.reshape(1, 2).astype(np.float64), np.ones(1)
    for layer in reversed(layers):
        y, x = np.clip(np.rint(places).astype(int), 0, np.array(layer.output_size) - 1).T
        taps = layer.taps(places.T)[None]  # (1, K, 2, P)
        masks = np.ones_like(taps[:, :, 0])
        if not plain:
            taps = taps + layer.offsets[..., y, x]
            masks = layer.masks[..., y, x].astype(np.float64)
        places = np.moveaxis(taps, 2, -1).reshape(-1, 2)
        weights = (masks * weights).reshape(-1)
    return places, weights


def _keep(outputs: dict[str, Tensor], name: str, _: object, __: object, output: Tensor) -> None:
    outputs[name] = output


def look(model: FasterRCNN, image: Tensor, points: list[tuple[float, float]]) -> list[Look]:
    """Look at points (x, y) of an image, in its pixels; the model is left in evaluation mode.

    Args:
        image: float32 (3, H, W) in [0, 1], on the model's device.
    """
    model.eval()
    with torch.no_grad():
        images, _ = model.transform([image])
    seen = images.tensors.detach().clone().requires_grad_()
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(partial(_keep, outputs, name))
        for name, module in convolutions(model).items()
    ]
    try:
        with sampling(model) as layers:
            model.backbone(seen)
    finally:
        for handle in handles:
            handle.remove()
    chosen = last_layers(layers)
    output = outputs[chosen[-1].name]
    scale = np.array(images.image_sizes[0]) / np.array(image.shape[-2:])  # (y, x)
    looks = []
    for x, y in points:
        pixel = np.array([y, x]) * scale
        stride = np.array(seen.shape[-2:]) / np.array(chosen[-1].output_size)
        cell = np.clip(np.rint(pixel / stride), 0, np.array(chosen[-1].output_size) - 1)
        (gradient,) = torch.autograd.grad(
            output[0, :, int(cell[0]), int(cell[1])].sum(), seen, retain_graph=True
        )
        field = gradient[0].abs().sum(dim=0).cpu().numpy()
        places, weights = trace(chosen, cell, plain=False)
        grid, _ = trace(chosen, cell, plain=True)
        into = np.array(seen.shape[-2:]) / np.array(chosen[0].input_size) / scale
        height, width = images.image_sizes[0]
        field = field[:height, :width]
        looks.append(
            Look(
                (x, y),
                (places * into)[:, ::-1],
                weights,
                (grid * into)[:, ::-1],
                field / max(float(field.sum()), 1e-30),
            )
        )
    return looks
