"""Pictures of an evaluation, drawn with Pillow: curves, a heat map, bars."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb

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
MAX_NAMED = 24  # classes in a legend: those with the most objects


def precision_recall(curves: dict[str, Curve]) -> Image.Image:
    """Precision over recall at an IoU of 0.5: a thin line a class, and their mean in black."""
    picture = Image.new("RGB", (SIDE + 2 * MARGIN + 220, SIDE + 2 * MARGIN), WHITE)
    draw = ImageDraw.Draw(picture)
    for tick in range(11):
        offset, label = round(SIDE * tick / 10), f"{tick / 10:.1f}"
        draw.line([(MARGIN + offset, MARGIN), (MARGIN + offset, MARGIN + SIDE)], GRID)
        draw.line([(MARGIN, MARGIN + offset), (MARGIN + SIDE, MARGIN + offset)], GRID)
        _text(draw, (MARGIN + offset, MARGIN + SIDE + 8), label, "ma")
        _text(draw, (MARGIN - 8, MARGIN + SIDE - offset), label, "rm")
    _text(draw, (MARGIN + SIDE / 2, MARGIN + SIDE + 34), "recall", "ma")
    _text(draw, (MARGIN, MARGIN - 24), "precision", "mm")

    colors = {name: _hue(number / len(curves)) for number, name in enumerate(curves)}
    for name, curve in curves.items():
        draw.line(_points(curve.precision), colors[name], 2)
    if curves:
        mean = np.mean([curve.precision for curve in curves.values()], axis=0)
        draw.line(_points(mean), BLACK, 4)
        named = sorted(curves, key=lambda name: -curves[name].num_objects)[:MAX_NAMED]
        entries = [("mean", mean, BLACK)]
        entries += [(name, curves[name].precision, colors[name]) for name in named]
        for number, (name, precision, color) in enumerate(entries):
            x, y = MARGIN + SIDE + 20, MARGIN + 20 * number
            draw.line([(x, y), (x + 20, y)], color, 4)
            _text(draw, (x + 28, y), f"{_short(name)} {100 * precision.mean():.1f}", "lm")
    return picture


def _points(precision: np.ndarray) -> list[tuple[float, float]]:
    """Where a curve (101,) over recalls 0..1 passes in the picture."""
    xs = MARGIN + SIDE * np.linspace(0, 1, len(precision))
    ys = MARGIN + SIDE * (1 - precision)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def heat_map(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Counts (R, C), each cell as dark as its share of its row; up to a few thousand pixels."""
    cell = max(1, min(48, 3000 // max(counts.shape)))
    left = 170
    size = (left + cell * len(columns) + 20, left + cell * len(rows) + 20)
    picture = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(picture)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(*counts.shape):
        x, y, share = left + cell * column, left + cell * row, float(shares[row, column])
        draw.rectangle([x, y, x + cell - 1, y + cell - 1], _blend(WHITE, BLUE, share))
        if cell >= 30 and counts[row, column]:
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


def _short(name: str) -> str:
    """One line that fits beside a picture."""
    name = " ".join(name.split())
    return name if len(name) <= 20 else name[:19] + "…"


def _hue(turn: float) -> Color:
    return _color(hsv_to_rgb(turn, 0.85, 0.8))


def _blend(light: Color, dark: Color, share: float) -> Color:
    mixed = (1 - share) * np.array(light) / 255 + share * np.array(dark) / 255
    return _color(tuple(mixed.tolist()))


def _color(rgb: tuple[float, ...]) -> Color:
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue
