"""Generates the embedded data set `shapes`: deformed outlines of a few classes.

Only the outline of an object shows its class. Its size, pose, bend, colour and texture are random,
and so are the background, the clutter and the occlusions. The images are generated on first use
and written to a folder in COCO format. An image depends only on the seed, the split, the index and
the image size; it depends neither on the number of images nor on the machine, because only uniform
draws, IEEE arithmetic and integer drawing are used.

    coverage  uint8   (H, W)     the quarters of each pixel that a layer covers, 0..4
    image     uint8   (H, W, 3)  BGR, as OpenCV writes it
"""

import json
import logging
import os
import tempfile
from math import cos, pi, sin
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detector.data.outlines import OUTLINES, SHAPE_CLASSES, Floats, deformed

VERSION = 1  # part of the folder's name; raise it with any change to an image or an annotation
SPLITS = ("train", "val")
MIN_VISIBLE = 0.35  # an object is not drawn if at most this fraction of it would be visible

Bytes = NDArray[np.uint8]

logger = logging.getLogger(__name__)


class Layer(NamedTuple):
    """One object, or one piece of clutter (label 0), that is painted over the layers below it."""

    coverage: Bytes
    label: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels of which at least half is covered, bool (H, W)."""
        return self.coverage >= 2


# ---- The folder -------------------------------------------------------------------------------


def shapes_folder(
    *, num_train: int, num_val: int, image_size: int, seed: int, cache: Path | None = None
) -> Path:
    """Return the folder of the data set with these parameters; generate it if it does not exist.

    The folder contains `train/*.png`, `val/*.png` and `annotations/instances_{train,val}.json`.

    Args:
        num_train, num_val: number of images in each split, at least 1.
        image_size: height and width in pixels, at least 32.
        seed: in [0, 2**32).
        cache: the folder to put it into; None takes the user's cache folder.

    Raises:
        ValueError: a parameter is out of its range.
        OSError: the folder cannot be written.
    """
    _check(num_train=num_train, num_val=num_val, image_size=image_size, seed=seed)
    cache = _user_cache() if cache is None else cache
    name = f"shapes-v{VERSION}-train{num_train}-val{num_val}-size{image_size}-seed{seed}"
    folder = cache / name
    if folder.is_dir():
        return folder
    logger.info("generating %d images, once, into %s", num_train + num_val, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".shapes-") as partial:
        unfinished = Path(partial) / name
        for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(unfinished, split, num_images, image_size=image_size, seed=seed)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster and wrote the same images
                raise
    return folder


def _check(*, num_train: int, num_val: int, image_size: int, seed: int) -> None:
    if num_train < 1 or num_val < 1:
        raise ValueError(f"shapes needs at least 1 image per split, got {num_train} and {num_val}")
    if image_size < 32:
        raise ValueError(f"shapes needs image_size >= 32, got {image_size}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"shapes needs 0 <= seed < 2**32, got {seed}")


def _user_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "deformable-faster-rcnn"


def _write_split(folder: Path, split: str, num_images: int, *, image_size: int, seed: int) -> None:
    (folder / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        image, objects = draw_image(seed=seed, split=split, index=index, image_size=image_size)
        file_name = f"{index:06d}.png"
        if not cv2.imwrite(str(folder / split / file_name), image):
            raise OSError(f"{folder / split / file_name}: cannot be written")
        images.append(
            {"id": index + 1, "file_name": file_name, "width": image_size, "height": image_size}
        )
        for layer in objects:
            ids = {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append(ids | _annotation(layer))
    categories = [{"id": label, "name": name} for label, name in enumerate(SHAPE_CLASSES, start=1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco))


def _annotation(layer: Layer) -> dict[str, Any]:
    ys, xs = np.nonzero(layer.mask)
    x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    return {
        "category_id": layer.label,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": len(xs),
        "iscrowd": 0,
    }


# ---- An image ---------------------------------------------------------------------------------


def draw_image(*, seed: int, split: str, index: int, image_size: int) -> tuple[Bytes, list[Layer]]:
    """Draw one image; return it with its visible objects, ordered from bottom to top."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    unit = image_size / 160  # lengths below are in pixels of a 160x160 image
    behind = _clutter(rng, image_size, unit)
    objects = _objects(rng, image_size, unit) if rng.random() > 0.02 else []
    layers = _visible(behind + objects + _occluders(rng, image_size, unit), image_size)
    image = _background(rng, image_size, unit)
    for layer in layers:
        _paint(rng, image, layer, unit)
    grain = rng.integers(-6, 7, image.shape)
    image = np.clip(image + grain, 0, 255).astype(np.uint8)
    return image, [layer for layer in layers if layer.label]


def _objects(rng: np.random.Generator, size: int, unit: float) -> list[Layer]:
    """Draw up to 8 objects; leave out an object whose centre is too close to an earlier one's."""
    layers: list[Layer] = []
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(1, 9)):
        extent = 36 * unit * (90 / 36) ** rng.random()
        x, y = rng.uniform(0.38 * extent, size - 0.38 * extent, 2)
        label = int(rng.integers(len(SHAPE_CLASSES))) + 1
        contours = deformed(rng, OUTLINES[SHAPE_CLASSES[label - 1]](rng))
        if any(np.hypot(x - a, y - b) < 0.3 * (extent + other) for a, b, other in placed):
            continue
        placed.append((x, y, extent))
        layers.append(Layer(_filled([c * extent + (x, y) for c in contours], size), label))
    return layers


def _visible(layers: list[Layer], size: int) -> list[Layer]:
    """Return the layers without the objects that the layers above them hide too much of."""
    kept: list[Layer] = []
    covered = np.zeros((size, size), dtype=bool)
    for layer in reversed(layers):
        mask = layer.mask
        if layer.label and (mask & ~covered).sum() <= MIN_VISIBLE * mask.sum():
            continue
        kept.append(layer)
        covered |= mask
    return kept[::-1]


def _clutter(rng: np.random.Generator, size: int, unit: float) -> list[Layer]:
    """Draw scribbles and specks, which belong to no class."""
    scribbles = [
        _stroke(rng, size, length=rng.uniform(10, 50) * unit, width=rng.uniform(1, 3) * unit)
        for _ in range(rng.integers(0, 4))
    ]
    specks = [
        _stroke(rng, size, length=rng.uniform(1, 4) * unit, width=rng.uniform(1, 3) * unit)
        for _ in range(rng.integers(0, 5))
    ]
    return scribbles + specks


def _occluders(rng: np.random.Generator, size: int, unit: float) -> list[Layer]:
    """Draw up to two occluders that lie on top of all objects: a straight bar and a scribble."""
    layers = []
    if rng.random() < 0.35:
        layers.append(_stroke(rng, size, length=4 * size, width=rng.uniform(3, 7) * unit, turn=0))
    if rng.random() < 0.35:
        layers.append(_stroke(rng, size, length=rng.uniform(10, 50) * unit, width=2 * unit))
    return layers


def _stroke(
    rng: np.random.Generator, size: int, *, length: float, width: float, turn: float = 0.6
) -> Layer:
    """Draw a random walk that passes through a random point of the image.

    Args:
        length, width: in pixels.
        turn: the largest angle between two steps, in radians.
    """
    num_steps = 12
    headings = rng.uniform(0, 2 * pi) + np.cumsum(rng.uniform(-turn, turn, num_steps))
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * length / num_steps
    points = np.cumsum(steps, axis=0)
    points += rng.uniform(0, size, 2) - points[num_steps // 2]
    canvas = np.zeros((2 * size, 2 * size), dtype=np.uint8)
    thickness = max(1, round(2 * width))
    cv2.polylines(canvas, [_fixed_point(points)], False, 1, thickness, cv2.LINE_8, _SHIFT)
    return Layer(_quarters(canvas), 0)


# ---- Colour -----------------------------------------------------------------------------------


def _background(rng: np.random.Generator, size: int, unit: float) -> Bytes:
    color = rng.uniform(30, 226, 3)
    return _texture(rng, (size, size), color, contrast=60, unit=unit).astype(np.uint8)


def _paint(rng: np.random.Generator, image: Bytes, layer: Layer, unit: float) -> None:
    """Blend a layer into the image with a texture whose colour differs from what it covers."""
    ys, xs = np.nonzero(layer.coverage)
    if not len(xs):
        return
    window = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    under = image[window]
    candidates = rng.uniform(0, 255, (3, 3))
    distances = np.abs(candidates - under.mean(axis=(0, 1))).sum(axis=1)
    color = candidates[distances.argmax()]
    texture = _texture(rng, under.shape[:2], color, contrast=60, unit=unit)
    alpha = layer.coverage[window][..., None] / 4
    image[window] = (alpha * texture + (1 - alpha) * under).astype(np.uint8)


def _texture(
    rng: np.random.Generator,
    size: tuple[int, ...],
    color: Floats,
    *,
    contrast: float,
    unit: float,
) -> Floats:
    """Return a pattern that varies between `color` and another colour, float64 (H, W, 3).

    The two colours differ by at most `contrast` in each channel.
    """
    shift = rng.uniform(-contrast, contrast, 3)
    return np.clip(color + _pattern(rng, size, unit)[..., None] * shift, 0, 255)


def _pattern(rng: np.random.Generator, size: tuple[int, ...], unit: float) -> Floats:
    """Return random noise, blobs, stripes, checks or a gradient, float64 (H, W) in [0, 1]."""
    kind = rng.integers(5)
    angle = rng.uniform(0, 2 * pi)
    period = rng.uniform(8, 40) * unit
    if kind == 0:
        return _smooth_noise(rng, size, period)
    if kind == 1:
        return (_smooth_noise(rng, size, period) > 0.5).astype(np.float64)
    y, x = np.indices(size, dtype=np.float64)
    u: Floats = x * cos(angle) + y * sin(angle)
    v: Floats = y * cos(angle) - x * sin(angle)
    if kind == 2:
        return 0.5 + 0.5 * np.sin(2 * pi * u / period)
    if kind == 3:
        return (np.floor(2 * u / period) + np.floor(2 * v / period)) % 2
    low, high = float(u.min()), float(u.max())
    return (u - low) / (high - low + 1)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, ...], period: float) -> Floats:
    """Return random values on a grid with a spacing of `period` pixels, smoothly interpolated."""
    (top, dy), (left, dx) = (_cells(length, period) for length in size)
    values = rng.random((top[-1] + 2, left[-1] + 2))
    rows = values[top] * (1 - dy[:, None]) + values[top + 1] * dy[:, None]
    return rows[:, left] * (1 - dx) + rows[:, left + 1] * dx


def _cells(length: int, period: float) -> tuple[NDArray[np.int64], Floats]:
    """Return the grid cell of each pixel, and its smoothed position in the cell, in [0, 1)."""
    position = np.arange(length) / period
    cell = np.floor(position).astype(np.int64)
    fraction = position - cell
    return cell, fraction * fraction * (3 - 2 * fraction)


# ---- Rasters: drawn at twice the size, with coordinates in sixteenths of a pixel --------------

_SHIFT = 4


def _filled(contours: list[Floats], size: int) -> Bytes:
    """Return the coverage of the area inside the contours, by the even-odd rule."""
    canvas = np.zeros((2 * size, 2 * size), dtype=np.uint8)
    cv2.fillPoly(canvas, [_fixed_point(contour) for contour in contours], 1, cv2.LINE_8, _SHIFT)
    return _quarters(canvas)


def _fixed_point(points: Floats) -> NDArray[np.int32]:
    return np.asarray(np.rint((2 * points - 0.5) * 2**_SHIFT), dtype=np.int32)


def _quarters(canvas: Bytes) -> Bytes:
    return canvas[::2, ::2] + canvas[1::2, ::2] + canvas[::2, 1::2] + canvas[1::2, 1::2]
