"""Finds the places that consecutive convolutions sample for one output, and its receptive field.

Between two 3x3 convolutions of a ResNet there are only 1x1 convolutions and operations on single
elements. A place in the input of one convolution is therefore the same place in the output of the
convolution before it.

P: sampling places, K: taps of a kernel, (H, W): the size of the image that the network sees.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from detector.analysis.coordinates import cells_at, centres_of
from detector.analysis.layers import Layer, convolutions, record_layers

DEPTH = 3  # layers, as in figure 6 of Dai et al. 2017


@dataclass(frozen=True)
class PointSampling:
    """Where a network samples for one point of an image file. Places are (x, y) in its coordinates.

    Attributes:
        point: (x, y).
        places: (P, 2), the sampling places; P = 9^3 for three layers with one offset group each.
        weights: (P,), the product of the masks that lead to each place; 1 for plain convolutions.
        grid: (P', 2), the sampling places without offsets; P' = 9^3 for three layers.
        field: float32 (H, W), the effective receptive field: the magnitude of the gradient at each
            pixel of the image as the network sees it, summed over colours. It adds up to 1.
    """

    point: tuple[float, float]
    places: np.ndarray
    weights: np.ndarray
    grid: np.ndarray
    field: np.ndarray


def last_layers(layers: dict[str, Layer]) -> list[Layer]:
    """Return the last three deformable layers or, if no layer is deformable, the last three."""
    deformable = [layer for layer in layers.values() if layer.is_deformable]
    return (deformable or list(layers.values()))[-DEPTH:]


def trace(layers: list[Layer], cell: np.ndarray, *, plain: bool) -> tuple[np.ndarray, np.ndarray]:
    """Find where consecutive layers sample for one cell of the last layer's output.

    A place between cells has the offsets and masks of the nearest cell. The places of all offset
    groups are followed.

    Args:
        layers: from the network's input to its output.
        cell: (2,) as (y, x).
        plain: ignore offsets and masks.

    Returns:
        The places (P, 2) as (y, x) in pixels of the first layer's input, and their weights (P,),
        which are the products of the masks.
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


def sampling_at_points(
    model: FasterRCNN, image: Tensor, points: list[tuple[float, float]]
) -> list[PointSampling]:
    """Find where a model samples for points of an image, and the effective receptive fields there.

    The model is left in evaluation mode.

    Args:
        image: float32 (3, height, width) in [0, 1], on the model's device.
        points: (x, y) in pixels of the image.
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
        with record_layers(model) as layers:
            model.backbone(seen)
    finally:
        for handle in handles:
            handle.remove()
    chosen = last_layers(layers)
    output = outputs[chosen[-1].name]
    scale = np.array(images.image_sizes[0]) / np.array(image.shape[-2:])  # (y, x)
    found = []
    for x, y in points:
        stride = np.array(seen.shape[-2:]) / np.array(chosen[-1].output_size)
        cell = np.rint(cells_at(np.array([y, x]), stride, scale))
        cell = np.clip(cell, 0, np.array(chosen[-1].output_size) - 1)
        (gradient,) = torch.autograd.grad(
            output[0, :, int(cell[0]), int(cell[1])].sum(), seen, retain_graph=True
        )
        field = gradient[0].abs().sum(dim=0).cpu().numpy()
        places, weights = trace(chosen, cell, plain=False)
        grid, _ = trace(chosen, cell, plain=True)
        input_stride = np.array(seen.shape[-2:]) / np.array(chosen[0].input_size)
        height, width = images.image_sizes[0]
        field = field[:height, :width]
        found.append(
            PointSampling(
                (x, y),
                centres_of(places, input_stride, scale)[:, ::-1],
                weights,
                centres_of(grid, input_stride, scale)[:, ::-1],
                field / max(float(field.sum()), 1e-30),
            )
        )
    return found
