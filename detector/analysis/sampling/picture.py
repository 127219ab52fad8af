"""Draws where a network samples for points of an image, and the effective receptive field there."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from detector.analysis.sampling.point_sampling import PointSampling


def sampling_figure(image: np.ndarray, sampled: Sequence[PointSampling]) -> Figure:
    """Draw a row of three panels for each point.

    They show where the network samples for the point, where it would sample without offsets, and
    its effective receptive field.

    Args:
        image: uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(12, 4 * len(sampled) * height / width + 0.6), layout="constrained")
    panels = figure.subplots(len(sampled), 3, squeeze=False)
    for row, one in zip(panels, sampled, strict=True):
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.imshow(image, extent=(0, width, height, 0))
            axes.set(xlim=(0, width), ylim=(height, 0))
        strength = one.weights / max(float(one.weights.max(initial=0)), 1e-12)
        row[0].scatter(*one.places.T, s=4, c="red", alpha=0.15 + 0.85 * strength.clip(0, 1))
        row[1].scatter(*one.grid.T, s=4, c="red")
        field = np.sqrt(one.field / max(float(one.field.max()), 1e-30))
        row[2].imshow(field, extent=(0, width, height, 0), cmap="inferno", alpha=0.75)
        for axes in row:
            axes.plot(*one.point, "+", color="lime", markersize=12, markeredgewidth=2)
    titles = (
        f"{len(sampled[0].places)} sampling places",
        "sampling places without offsets",
        "effective receptive field (root of the gradient)",
    )
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title)
    return figure
