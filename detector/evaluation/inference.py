"""Run a detector on a data set.

Images of equal size can share a batch: the network then gets each of them as it would alone,
without further padding. The detections differ from those of single images by rounding only: for
another number of images, a library may add the products of a convolution in another order.

D: detections of an image;  K: classes.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from detector.data.dataset import Sample
from detector.data.loading import converted_worker_errors
from detector.evaluation.coco_format import as_detections
from detector.evaluation.columns import Detections
from detector.evaluation.entries import EvaluationError
from detector.out_of_memory import is_out_of_memory


class Found(NamedTuple):
    """The detections of one image, by descending score."""

    image_id: int
    boxes: np.ndarray  # float64 (D, 4) x, y, w, h in the pixels of the image file
    scores: np.ndarray  # float32 (D,)
    labels: np.ndarray  # int64 (D,) 1..K


def to_float(image: Tensor, device: torch.device) -> Tensor:
    """Convert an image uint8 (3, H, W) to float32 in [0, 1] on the device."""
    return image.to(device, non_blocking=True).float() / 255


def progress(
    batches: Iterable[list[Sample]], *, num_images: int, shown: bool = True
) -> Iterator[list[Sample]]:
    """Iterate over the batches, with a progress bar of the images if the output is a terminal."""
    with tqdm(
        total=num_images,
        desc="evaluating",
        unit="image",
        disable=None if shown else True,
        leave=False,
    ) as bar:
        for samples in batches:
            yield samples
            bar.update(len(samples))


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[list[Sample]],
    *,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[list[Found], float]:
    """Run the model on all images, and leave it in evaluation mode.

    Args:
        batches: lists of images of equal size.
        precision: the dtype of autocast; float32 means no autocast.

    Returns:
        The detections of each image, in the order of the batches, and the seconds that were spent
        in the model.

    Raises:
        DatasetError: an image cannot be read, or a worker that loads images died or is stuck.
        EvaluationError: the device does not have enough memory for a batch of several images.
    """
    model.eval()
    found: list[Found] = []
    seconds = 0.0
    with converted_worker_errors():
        for samples in batches:
            with _memory_errors_named(samples):
                images = [to_float(sample["image"], device) for sample in samples]
                start = time.perf_counter()
                with torch.autocast(
                    device.type, dtype=precision, enabled=precision != torch.float32
                ):
                    results = rows_of(model(images))
                seconds += time.perf_counter() - start
            for sample, rows in zip(samples, results, strict=True):
                boxes = np.hstack([rows[:, :2], rows[:, 2:4] - rows[:, :2]])
                scores, labels = rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int64)
                found.append(Found(sample["image_id"], boxes, scores, labels))
    return found, seconds


def rows_of(results: list[dict[str, Tensor]]) -> list[np.ndarray]:
    """Copy the results of a batch from the device at once, which waits for the device.

    Returns:
        For each image float64 (D, 6): x1, y1, x2, y2, score, label. float64 has a number for every
        label and every value of boxes and scores.
    """
    rows = [
        torch.column_stack([one["boxes"].double(), one["scores"], one["labels"]]) for one in results
    ]
    ends = np.cumsum([len(of_image) for of_image in rows])
    return np.split(torch.cat(rows).cpu().numpy(), ends[:-1])


@contextmanager
def _memory_errors_named(samples: list[Sample]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if len(samples) == 1 or not is_out_of_memory(error):
            raise
        height, width = samples[0]["image"].shape[1:]
        raise EvaluationError(
            f"out of memory on a batch of {len(samples)} images of {width}x{height} pixels: give a "
            "smaller eval_batch_size"
        ) from error


def in_order(found: Iterable[Found], image_ids: Iterable[int]) -> list[Found]:
    """Return the detections of the images in the order of their ids."""
    of_id = {image.image_id: image for image in found}
    return [of_id[image_id] for image_id in image_ids]


def to_detections(found: list[Found], category_ids: tuple[int, ...]) -> Detections:
    """Convert detections to columns; label l gets the category id `category_ids[l - 1]`."""
    if not found:
        return as_detections([])
    lengths = [len(image.scores) for image in found]
    return Detections(
        np.repeat(np.array([image.image_id for image in found], dtype=np.int64), lengths),
        np.array(category_ids, dtype=np.int64)[np.concatenate([one.labels for one in found]) - 1],
        np.concatenate([image.boxes for image in found]),
        np.concatenate([image.scores for image in found]).astype(np.float64),
    )
