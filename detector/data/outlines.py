"""Draws the outlines of the classes of the `shapes` data set, and deforms them.

    points  float64 (P, 2)  (x, y) of one closed contour, or of several concatenated ones

Contours are centred near the origin. Their edges are sampled densely enough to be bent.
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _disc(rng: np.random.Generator) -> list[Floats]:
    return [_arc(0, 2 * pi)]


def _ring(rng: np.random.Generator) -> list[Floats]:
    return [_arc(0, 2 * pi), rng.uniform(0.45, 0.6) * _arc(0, 2 * pi)]


def _triangle(rng: np.random.Generator) -> list[Floats]:
    return [_edges(_arc(0, 2 * pi, 3))]


def _star(rng: np.random.Generator) -> list[Floats]:
    corners = _arc(0, 2 * pi, 10)
    corners[1::2] *= rng.uniform(0.38, 0.46)
    return [_edges(corners)]


def _cross(rng: np.random.Generator) -> list[Floats]:
    a = rng.uniform(0.2, 0.32)
    arm = np.array([(1, -a), (1, a), (a, a)])
    return [_edges(np.concatenate([_rotated(arm, turn * pi / 2) for turn in range(4)]))]


def _crescent(rng: np.random.Generator) -> list[Floats]:
    """Return a unit disc minus another disc.

    The other disc has its centre at (x, 0), and the two circles cross at the angles +-`tip`.
    """
    tip, x = rng.uniform(0.6, 0.85), rng.uniform(0.35, 0.5)
    radius, angle = np.hypot(cos(tip) - x, sin(tip)), np.arctan2(sin(tip), cos(tip) - x)
    bite = radius * _arc(2 * pi - angle, angle) + (x, 0)
    return [np.concatenate([_arc(tip, 2 * pi - tip), bite])]


OUTLINES: dict[str, Callable[[np.random.Generator], list[Floats]]] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
}
SHAPE_CLASSES: tuple[str, ...] = tuple(OUTLINES)


def _arc(start: float, stop: float, num_points: int = 48) -> Floats:
    """Return points of the unit circle at angles from `start` (inclusive) to `stop` (exclusive)."""
    angles = start + (stop - start) * np.arange(num_points) / num_points
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _edges(corners: Floats, num_points: int = 12) -> Floats:
    """Return the closed polygon with these corners, sampled at `num_points` points per edge."""
    fraction = np.arange(num_points)[:, None] / num_points
    points = corners[:, None] * (1 - fraction) + np.roll(corners, -1, axis=0)[:, None] * fraction
    return points.reshape(-1, 2)


def deformed(rng: np.random.Generator, contours: list[Floats]) -> list[Floats]:
    """Bend, ripple, stretch, shear and rotate an outline at random.

    The result is scaled and shifted so that its bounding box has its centre at the origin and a
    longer side of 1.
    """
    points = np.concatenate(contours)
    points = _bent(_turned(rng, points), rng.uniform(0.1, 0.5) * rng.choice([-1, 1]))
    points = _rippled(rng, _turned(rng, points))
    points = _turned(rng, points) * (1, rng.uniform(0.7, 1))
    points[:, 0] += rng.uniform(-0.25, 0.25) * points[:, 1]
    points = _turned(rng, points)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / (high - low).max()
    return np.split(points, np.cumsum([len(contour) for contour in contours])[:-1])


def _turned(rng: np.random.Generator, points: Floats) -> Floats:
    return _rotated(points, rng.uniform(0, 2 * pi))


def _rotated(points: Floats, angle: float) -> Floats:
    x, y = points.T
    return np.stack([x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)], axis=1)


def _bent(points: Floats, curvature: float) -> Floats:
    """Bend the points so that the x axis becomes an arc of this curvature."""
    x, y = points.T
    radius = 1 / curvature + y
    return np.stack(
        [radius * np.sin(curvature * x), radius * np.cos(curvature * x) - 1 / curvature], axis=1
    )


def _rippled(rng: np.random.Generator, points: Floats) -> Floats:
    """Move the points along y by a random sine wave in x, too flat to fold the outline."""
    x, y = points.T
    wave = rng.uniform(0.0, 0.13) * np.sin(rng.uniform(2, 3.5) * x + rng.uniform(0, 2 * pi))
    return np.stack([x, y + wave], axis=1)
