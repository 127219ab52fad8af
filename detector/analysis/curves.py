"""Pictures of an evaluation, drawn with Pillow: curves, a heat map, bars."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter

from detector.evaluation.coco import Curve

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
GRID: Color = (221, 224, 229)
BLUE: Color = (31, 95, 191)
TEXT = 15  # pixels, as all sizes here
SIDE = 500  # of the plot
MARGIN = 60  # around it, for the ticks
LEGEND = 260  # right of it
MAX_NAMED = 24  # classes in a legend: those with the most objects


class Line(NamedTuple):
    """One line of a chart."""

    label: str | None  # None: it is not in the legend
    xs: np.ndarray
    ys: np.ndarray
    color: Color
    width: int = 2
    dots: bool = False  # at its points, of which one alone makes no line


def precision_recall(curves: dict[str, Curve]) -> Image.Image:
    """Precision over recall at an IoU of 0.5: a thin line a class, and their mean in black."""
    recall = np.linspace(0, 1, 101)
    named = sorted(curves, key=lambda name: -curves[name].num_objects)[:MAX_NAMED]
    lines = []
    for name, color in zip(curves, colors(len(curves)), strict=True):
        precision = curves[name].precision
        label = f"{_short(name)} {100 * precision.mean():.1f}" if name in named else None
        lines.append(Line(label, recall, precision, color))
    if curves:
        mean = np.mean([curve.precision for curve in curves.values()], axis=0)
        lines.append(Line(f"mean {100 * mean.mean():.1f}", recall, mean, BLACK, 4))
    return chart(lines, x=("recall", 1.0), y=("precision", 1.0))


def chart(lines: Sequence[Line], *, x: tuple[str, float], y: tuple[str, float]) -> Image.Image:
    """Lines over each other, the last on top; `x` and `y` are each axis' name and its end, at
    which all lines are cut. Both begin at 0.
    """
    picture = Image.new("RGB", (SIDE + 2 * MARGIN + LEGEND, SIDE + 2 * MARGIN), WHITE)
    plot = Image.new("RGB", (SIDE + 1, SIDE + 1), WHITE)
    draw, inside = ImageDraw.Draw(picture), ImageDraw.Draw(plot)
    for tick in range(11):
        offset = round(SIDE * tick / 10)
        inside.line([(offset, 0), (offset, SIDE)], GRID)
        inside.line([(0, offset), (SIDE, offset)], GRID)
        _text(draw, (MARGIN + offset, MARGIN + SIDE + 8), f"{x[1] * tick / 10:.3g}", "ma")
        _text(draw, (MARGIN - 8, MARGIN + SIDE - offset), f"{y[1] * tick / 10:.3g}", "rm")
    for line in lines:
        columns, rows = SIDE * line.xs / x[1], SIDE * (1 - line.ys / y[1])
        points = list(zip(columns.tolist(), rows.tolist(), strict=True))
        inside.line(points, line.color, line.width)
        for point in points if line.dots else []:
            inside.circle(point, 4, line.color)
    picture.paste(plot, (MARGIN, MARGIN))
    _text(draw, (MARGIN + SIDE / 2, MARGIN + SIDE + 34), x[0], "ma")
    _text(draw, (MARGIN, MARGIN - 24), y[0], "mm")
    named = [line for line in lines if line.label is not None]
    for number, line in enumerate(named[: MAX_NAMED + 1]):
        left, height = MARGIN + SIDE + 20, MARGIN + 20 * number
        draw.line([(left, height), (left + 20, height)], line.color, 4)
        _text(draw, (left + 28, height), _short(line.label or "", 32), "lm")
    return picture


def colors(number: int) -> list[Color]:
    """As many colours, told apart by their hue."""
    return [_hue(index / number) for index in range(number)]


def heat_map(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Counts (R, C), each cell as dark as its share of its row; up to a few thousand pixels."""
    cell = max(1, min(48, 3000 // max(counts.shape)))
    left = 170
    size = (left + cell * len(columns) + 20, left + cell * len(rows) + 20)
    picture = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(picture)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.argwhere(counts):  # the others are white already
        x, y, share = left + cell * column, left + cell * row, float(shares[row, column])
        draw.rectangle([x, y, x + cell - 1, y + cell - 1], _blend(WHITE, BLUE, share))
        if cell >= 30:
            color = WHITE if share > 0.5 else BLACK
            _text(draw, (x + cell / 2, y + cell / 2), str(counts[row, column]), "mm", color)
    if cell >= 12:
        for row, name in enumerate(rows):
            _text(draw, (left - 8, left + cell * (row + 0.5)), _short(name), "rm")
        upright = Image.new("RGB", (left, cell * len(columns)), WHITE)
        upright_draw = ImageDraw.Draw(upright)
        for number, name in enumerate(columns):
            _text(upright_draw, (8, cell * (number + 0.5)), _short(name), "lm")
        picture.paste(upright.transpose(Image.Transpose.ROTATE_90), (left, 0))
    _text(draw, (8, 8), "rows: true, columns: predicted", "la")
    return picture


def bars(values: dict[str, float], title: str) -> Image.Image:
    """A bar from 0 a value, in one scale; the longest is 300 pixels long."""
    picture = Image.new("RGB", (620, 60 + 40 * len(values)), WHITE)
    draw = ImageDraw.Draw(picture)
    _text(draw, (20, 20), title, "lm")
    longest = max([value for value in values.values() if value > 0], default=1.0)
    for number, (name, value) in enumerate(values.items()):
        y, length = 60 + 40 * number, round(300 * max(value, 0) / longest)
        if length:
            draw.rectangle([200, y - 12, 200 + length - 1, y + 11], BLUE)
        _text(draw, (190, y), _short(name), "rm")
        _text(draw, (210 + length, y), f"{value:.1f}", "lm")
    return picture


def to_tensorboard(writer: SummaryWriter, pictures: dict[str, Image.Image], step: int) -> None:
    """Show the pictures, each under its name."""
    for name, picture in pictures.items():
        writer.add_image(name, np.asarray(picture), step, dataformats="HWC")


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    words: str,
    anchor: str,
    color: Color = BLACK,
) -> None:
    draw.text(place, words, color, ImageFont.load_default(TEXT), anchor)


def _short(name: str, length: int = 20) -> str:
    """One line that fits beside a picture."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"


def _hue(turn: float) -> Color:
    return _color(hsv_to_rgb(turn, 0.85, 0.8))


def _blend(light: Color, dark: Color, share: float) -> Color:
    mixed = (1 - share) * np.array(light) / 255 + share * np.array(dark) / 255
    return _color(tuple(mixed.tolist()))


def _color(rgb: tuple[float, ...]) -> Color:
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue
