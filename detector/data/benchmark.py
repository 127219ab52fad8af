"""Compares the speed of the training loader with that of a plain loader, on one core.

    ours             decoding and the training transform, as the run is configured
    plain            a loader like torchvision's detection reference: Pillow decodes, and
                     `transforms.v2` flips, resizes to the same sizes and makes a tensor
    ours, decoding   the decoding of `ours` alone
    plain, decoding  the decoding of `plain` alone

All loaders load the same images with one thread. Rounds are interleaved: each round runs every
loader once, in a random order. The first round is a warm-up and is not counted.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from detector.data.dataset import DetectionDataset
from detector.data.errors import file_error
from detector.data.loading import Augmented
from detector.data.transforms import TrainTransform
from detector.tables import table

Load = Callable[[int], object]


def benchmark(
    dataset: DetectionDataset,
    transform: TrainTransform,
    *,
    min_sizes: list[int],
    max_size: int,
    flip_probability: float,
    num_images: int,
    rounds: int,
) -> dict[str, list[float]]:
    """Return the images per second on one core of each loader, one value per round.

    Args:
        transform: the transform of `ours`; of its steps, `plain` has the flip and the resize only.
        min_sizes: sizes in pixels that `plain` draws the shorter side from.
        max_size: upper limit of the longer side in pixels, for `plain`.
        flip_probability: probability of the horizontal flip in `plain`.
        num_images: only the first `num_images` images are loaded; fewer if there are fewer.
        rounds: the number of rounds that are counted.

    Raises:
        DatasetError: an image cannot be loaded.
    """
    augmented = Augmented(dataset, transform=transform, seed=0)
    plain = v2.Compose(
        [
            v2.RandomHorizontalFlip(flip_probability),
            v2.RandomShortestSize(min_sizes, max_size),
            v2.PILToTensor(),
        ]
    )

    def open_plainly(index: int) -> Image.Image:
        path = dataset.records[index].path
        try:
            with Image.open(path) as file:
                return file.convert("RGB")
        except Exception as error:  # a damaged file can raise any exception
            raise file_error(path, f"cannot be decoded ({error})") from error

    def load_plainly(index: int) -> object:
        record = dataset.records[index]
        size = (record.height, record.width)
        return plain(
            open_plainly(index), BoundingBoxes(record.boxes, format="XYXY", canvas_size=size)
        )

    loaders: dict[str, Load] = {
        "ours": lambda index: augmented[0, index],
        "plain": load_plainly,
        "ours, decoding": lambda index: dataset[index],
        "plain, decoding": open_plainly,
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    indices, order = range(min(num_images, len(dataset))), random.Random(0)
    with _one_thread():
        for round_ in range(rounds + 1):
            for name in order.sample(sorted(loaders), len(loaders)):
                start = time.perf_counter()
                for index in indices:
                    loaders[name](index)
                if round_:
                    rates[name].append(len(indices) / (time.perf_counter() - start))
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median, minimum and maximum over the rounds, for each loader and "ours / plain".

    The values of a loader are images per second; those of "ours / plain" are the ratios of the two
    loaders in the same round.
    """
    ratio = [ours / plain for ours, plain in zip(rates["ours"], rates["plain"], strict=True)]
    values = {**rates, "ours / plain": ratio}
    return {
        name: {"median": statistics.median(v), "min": min(v), "max": max(v)}
        for name, v in values.items()
    }


def to_markdown(rates: dict[str, list[float]]) -> str:
    """Return the summary as a Markdown table, with the ratio below it."""
    *loaders, (_, ratio) = summary(rates).items()
    rows = [
        [
            name,
            f"{v['median']:.1f}",
            f"{v['min']:.1f} to {v['max']:.1f}",
            f"{1e3 / v['median']:.2f}",
        ]
        for name, v in loaders
    ]
    header = ["loader", "images/s a core", "rounds", "ms an image"]
    least, most = f"{ratio['min']:.2f}", f"{ratio['max']:.2f}"
    return (
        f"{table(header, rows)}\n\nours / plain: {ratio['median']:.2f} times as fast "
        f"({least} to {most})"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch and OpenCV to one thread, as in a worker of the training loader."""
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
