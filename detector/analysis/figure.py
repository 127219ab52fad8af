"""Draws the manual's picture of a deformable convolution: python -m detector.analysis.figure [FILE]

It has three panels. Two show a 3x3 kernel over a curved object: where a plain convolution samples,
and where a deformable one does, with arrows for its offsets. The third shows how a sample between
four pixels is interpolated.
"""

import sys
from math import cos, dist, sin
from pathlib import Path

Point = tuple[float, float]  # (x, y) in pixels of the drawn image

DEFAULT = Path("docs/deformable_convolution.svg")
CELL = 34  # SVG units per pixel
SIZE = 8  # pixels along each side of a panel
GAP = 60  # SVG units between panels
CENTER: Point = (4.5, 4.5)
RADIUS = 4.2  # pixels; of the object's arc, whose centre is below the kernel's
SPREAD = 2.3  # pixels between taps along the arc

BLUE, ORANGE, GREY, OBJECT = "#1f5fbf", "#d9622b", "#8a8f98", "#f3d9a4"


def on_arc(along: float, across: float) -> Point:
    """Return the point that is so many pixels along the object's middle line, and across it.

    Both distances are measured from the kernel's centre.
    """
    angle, radius = along / RADIUS, RADIUS - across
    return CENTER[0] + radius * sin(angle), CENTER[1] + RADIUS - radius * cos(angle)


def taps() -> list[tuple[Point, Point]]:
    """Return each tap, row-major: its place on the regular grid, and its place with the offset."""
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return [((CENTER[0] + j, CENTER[1] + i), on_arc(SPREAD * j, 0.62 * i)) for i, j in steps]


def at(point: Point) -> str:
    return f"{CELL * point[0]:.1f},{CELL * point[1]:.1f}"


def dot(point: Point, color: str, radius: float = 6) -> str:
    x, y = at(point).split(",")
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{color}" stroke="white"/>'


def line(start: Point, end: Point, style: str) -> str:
    return f'<path d="M{at(start)} L{at(end)}" fill="none" {style}/>'


def text(point: Point, words: str, size: int = 15, color: str = "#222") -> str:
    x, y = at(point).split(",")
    place = f'x="{x}" y="{y}" text-anchor="middle"'
    return f'<text {place} font-size="{size}" fill="{color}">{words}</text>'


def grid(size: int) -> str:
    style = 'stroke="#d5d8dd" stroke-width="1"'
    ticks = range(size + 1)
    return "".join(line((t, 0), (t, size), style) + line((0, t), (size, t), style) for t in ticks)


def scene() -> str:
    """Draw the grid of pixels and the curved object on it."""
    path = " L".join(at(on_arc(0.1 * step, 0)) for step in range(-32, 33))
    width = 2.2 * CELL
    return (
        f'<path d="M{path}" fill="none" stroke="{OBJECT}" stroke-width="{width:.0f}" '
        'stroke-linecap="round"/>' + grid(SIZE)
    )


def regular() -> str:
    dots = "".join(dot(place, BLUE) for place, _ in taps())
    return scene() + dots + text((4, 8.8), "convolution: a fixed grid")


def deformed() -> str:
    arrow = f'stroke="{ORANGE}" stroke-width="1.6" marker-end="url(#head)"'
    parts = [
        dot(place, GREY, 3.5) + (line(place, moved, arrow) if dist(place, moved) > 0.6 else "")
        for place, moved in taps()
    ]
    dots = "".join(dot(moved, ORANGE) for _, moved in taps())
    return scene() + "".join(parts) + dots + text((4, 8.8), "deformable: a learned offset per tap")


def bilinear() -> str:
    """Draw the square between four pixel centres, enlarged, with the sample in it."""
    fx, fy, low, high = 0.35, 0.6, 1.5, 6.5
    sample = (low + fx * (high - low), low + fy * (high - low))
    dashed = f'stroke="{ORANGE}" stroke-width="1.4" stroke-dasharray="5 4"'
    corners = {(low, low): "00", (high, low): "01", (low, high): "10", (high, high): "11"}
    weights = {"00": "(1−fy)(1−fx)", "01": "(1−fy) fx", "10": "fy (1−fx)", "11": "fy fx"}
    parts = [
        f'<rect x="{CELL * low}" y="{CELL * low}" width="{CELL * (high - low)}" '
        f'height="{CELL * (high - low)}" fill="none" stroke="#d5d8dd" stroke-width="2"/>',
        line((sample[0], low), sample, dashed),
        line((low, sample[1]), sample, dashed),
        text(((low + sample[0]) / 2, sample[1] - 0.2), "fx", color=ORANGE),
        text((sample[0] + 0.4, (low + sample[1]) / 2), "fy", color=ORANGE),
        dot(sample, ORANGE, 8),
    ]
    for corner, name in corners.items():
        above = corner[1] == low
        parts.append(dot(corner, BLUE, 8))
        parts.append(text((corner[0], corner[1] + (-0.5 if above else 0.8)), weights[name], 14))
    return "".join(parts) + text((4, 8.8), "a sample: weighted mean of four pixels")


def figure() -> str:
    """Return the SVG document."""
    step = CELL * SIZE + GAP
    panels = "".join(
        f'<g transform="translate({GAP / 2 + index * step:.0f},20)">{panel}</g>'
        for index, panel in enumerate((regular(), deformed(), bilinear()))
    )
    width, height = 3 * step, CELL * (SIZE + 1) + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif">'
        f'<defs><marker id="head" markerWidth="7" markerHeight="7" refX="9" refY="3" orient="auto">'
        f'<path d="M0,0 L6,3 L0,6 z" fill="{ORANGE}"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="white"/>{panels}</svg>\n'
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(figure())
