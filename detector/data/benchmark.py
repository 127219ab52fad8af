"""Times the loading of training images beside a plain loader, on one core.

    ours            decoding and the training transform, as the run is configured
    plain           in the manner of torchvision's detection reference: Pillow's decoding, then
                    `transforms.v2`'s flip and resize to the same sizes, then a tensor
    ... decoding    the decoding of either alone

All load the same images with one thread. Rounds are interleaved: each runs every loader once, in an
order of its own; a first round warms up and is left out.
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
    """Images a second and core of each loader, a value a round.

    Args:
        transform: ours; what it does beyond flip and resize, the plain loader leaves out.
        min_sizes, max_size, flip_probability: of the plain loader's transform.
        num_images: the first so many are loaded, or as many as there are.

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
        except Exception as error:  # of any kind: the file's bytes decide which
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
    """Median, least and most images a second by loader, and ours over the plain, round by round."""
    ratio = [ours / plain for ours, plain in zip(rates["ours"], rates["plain"], strict=True)]
    values = {**rates, "ours / plain": ratio}
    return {
        name: {"median": statistics.median(v), "min": min(v), "max": max(v)}
        for name, v in values.items()
    }


def to_markdown(rates: dict[str, list[float]]) -> str:
    """The summary as a table."""
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
    """As in a worker of the training's loader."""
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
