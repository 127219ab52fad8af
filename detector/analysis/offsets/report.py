"""Turns offsets.json and roi_bins.json into tables, for markdown and for web pages."""

from typing import Any

Rows = tuple[list[str], list[list[str]]]  # the header of a table, and its rows


def dilation_rows(layers: dict[str, dict[str, Any]]) -> Rows:
    """Return the effective dilation of all layers, as in table 2 of Dai et al. 2017.

    Layers are listed from the network's output to its input.
    """
    rows = []
    for name, layer in reversed(layers.items()):
        cells = [
            "-" if one["mean"] is None else f"{one['mean']:.2f} ± {one['deviation']:.2f}"
            for one in layer["dilation"].values()
        ]
        rows.append([name, "deformable" if layer["is_deformable"] else "plain", *cells])
    return ["layer", "", *next(iter(layers.values()))["dilation"]], rows


def offsets_rows(layers: dict[str, dict[str, Any]]) -> Rows:
    """Return the lengths of the offsets, and the masks, of all deformable layers.

    Layers are listed from the network's output to its input.
    """
    rows = [
        [
            name,
            f"{layer['offset_mean']:.2f}",
            f"{layer['offset_p99']:.2f}",
            f"{100 * layer['outside']:.1f} % ({100 * layer['grid_outside']:.1f} %)",
            _share(layer["offsets_by_place"]),
            f"{layer['mask_mean']:.2f} ± {layer['mask_deviation']:.2f}",
            _share(layer["masks_by_place"]),
        ]
        for name, layer in reversed(layers.items())
        if layer["is_deformable"]
    ]
    header = ["layer", "offsets: mean, pixels", "99th percentile", "outside the map (plain grid)"]
    return [*header, "by place", "masks", "by place"], rows


def bin_rows(sizes: dict[str, dict[str, float]]) -> Rows:
    """Return how far the bins of RoI pooling move, by the size of the objects."""
    rows = [
        [
            size,
            f"{one['number']:.0f}",
            f"{100 * one['mean']:.1f} %",
            f"{100 * one['p99']:.1f} %",
            f"{100 * one['by_object']:.0f} %",
            f"{one['mask_mean']:.2f} ± {one['mask_deviation']:.2f}",
        ]
        for size, one in sizes.items()
    ]
    header = ["objects", "number", "bins move: mean, of the box", "99th percentile"]
    return [*header, "by object", "masks"], rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
