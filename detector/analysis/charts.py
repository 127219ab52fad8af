"""Draws charts with matplotlib. Each function returns a figure; nothing is shown on a screen.

Charts that compare arms are readable in black and white: besides a colour, each arm has a marker or
a dash pattern of its own.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from detector.evaluation.coco import Curve

MAX_NAMED = 24  # classes in a legend; those with the most objects are chosen
MAX_CELLS = 30  # rows or columns up to which the cells of a heat map have room for numbers
COLORS = ("#1f5fbf", "#d9622b", "#3c8d40", "#8a4fb0", "#777777", "#b08900")  # one for each arm
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))

matplotlib.rcParams["svg.fonttype"] = "none"  # keep text as text
matplotlib.rcParams["svg.hashsalt"] = "deformable"  # the same figure gives the same file


def precision_recall(curves: dict[str, Curve]) -> Figure:
    """Draw precision over recall at an IoU of 0.5: each class, and their mean in black."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    named = sorted(curves, key=lambda name: -curves[name].num_objects)[:MAX_NAMED]
    for number, (name, curve) in enumerate(curves.items()):
        label = f"{short(name)} {100 * curve.precision.mean():.1f}" if name in named else None
        color = matplotlib.colormaps["turbo"](number / max(len(curves), 1))
        axes.plot(recall, curve.precision, color=color, linewidth=1, label=label)
    if curves:
        mean = np.mean([curve.precision for curve in curves.values()], axis=0)
        label = f"mean {100 * mean.mean():.1f}"
        axes.plot(recall, mean, color="black", linewidth=3, label=label)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    return figure


def heat_map(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw counts (R, C) as a heat map in which a cell is shaded by its share of its row."""
    side = min(max(4.0, 0.4 * max(counts.shape)), 20.0)
    figure = Figure(figsize=(side + 1.5, side + 1.5), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 8 if max(counts.shape) <= MAX_CELLS else 4
    axes.set_xticks(range(len(columns)), [short(name) for name in columns], rotation=90, size=size)
    axes.set_yticks(range(len(rows)), [short(name) for name in rows], size=size)
    axes.set(xlabel="predicted", ylabel="true")
    if max(counts.shape) <= MAX_CELLS:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=color)
    return figure


def bars(values: dict[str, float], title: str) -> Figure:
    """Draw a horizontal bar for each value, the first one on top."""
    figure = Figure(figsize=(6, 0.5 + 0.45 * max(len(values), 1)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh([short(name) for name in values], list(values.values()), color=COLORS[0])
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, loc="left")
    return figure


def forest(rows: Sequence[dict[str, Any]], xlabel: str) -> Figure:
    """Draw a forest plot: differences with their confidence intervals, the first one on top.

    Args:
        rows: dictionaries with `label`, and in points `value`, `low` and `high` of the difference
            and `seeds`, a list of the differences between single runs, which are drawn as ticks.
    """
    figure = Figure(figsize=(7, 0.9 + 0.45 * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.plot([row["low"], row["high"]], [place, place], color="black", linewidth=2)
        axes.plot(row["value"], place, "s", color="black", markersize=7)
        axes.plot(row["seeds"], [place + 0.22] * len(row["seeds"]), "|", color="#555555")
    axes.axvline(0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [short(row["label"], 40) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", alpha=0.3)
    return figure


def training_curves(
    lines: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], x: str, y: str
) -> Figure:
    """Draw each seed's curve as a thin line, and the mean of each arm's curves as a thick one.

    A mean ends with the shortest of its curves, since early stopping may leave them with different
    numbers of points: only points that all seeds share are averaged. Curves without any points are
    left out.

    Args:
        lines: arm -> (xs, ys) of each seed.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (arm, seeds) in enumerate(lines.items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        dashes = DASHES[number % len(DASHES)]
        drawn = [(xs, ys) for xs, ys in seeds if len(xs)]
        if not drawn:
            continue
        for xs, ys in drawn:
            thin: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.5, "linestyle": dashes}
            axes.plot(xs, ys, color=color, marker="." if len(xs) == 1 else "", **thin)
        shared = min(len(xs) for xs, _ in drawn)
        mean_x = np.mean([xs[:shared] for xs, _ in drawn], axis=0)
        mean_y = np.mean([ys[:shared] for _, ys in drawn], axis=0)
        style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dashes}
        axes.plot(mean_x, mean_y, linewidth=2, markersize=5, label=short(arm, 40), **style)
    axes.set(xlabel=x, ylabel=y)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def cost_and_metric(arms: dict[str, tuple[float, float]], x: str, y: str) -> Figure:
    """Draw a point for each arm: its cost along x, and the metric that it reaches along y."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for number, (arm, (cost, value)) in enumerate(arms.items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        axes.plot(cost, value, marker, color=color, markersize=9)
        axes.annotate(short(arm, 40), (cost, value), xytext=(8, 6), textcoords="offset points")
    axes.margins(0.3)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix, such as .png."""
    figure.savefig(path, dpi=110)


def png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """Return the <svg> element alone, to be put into a page.

    The same figure gives the same text each time.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def to_tensorboard(writer: SummaryWriter, figures: dict[str, Figure], step: int) -> None:
    """Add the figures to TensorBoard, each under its name."""
    for name, figure in figures.items():
        writer.add_figure(name, figure, step, close=False)


def short(name: str, length: int = 20) -> str:
    """Shorten a name to one line of at most `length` characters, and escape `$` for matplotlib."""
    name = " ".join(name.split())
    name = name if len(name) <= length else name[: length - 1] + "…"
    return name.replace("$", r"\$")
