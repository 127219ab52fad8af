"""Samples, augments and batches a dataset, reproducibly.

The content of a batch depends only on the seed, the epoch and the position in the epoch. The
sampler runs in the main process and sends (epoch, index) to the workers, so neither the number of
workers, nor what they have loaded before, nor resuming a run changes a sample.
"""

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.data.dataset import DatasetError, DetectionDataset, Sample
from detector.data.images import Size
from detector.data.transforms import TrainTransform, sample_seed

TIME_LIMIT = 600.0  # seconds to load a batch, after which the worker counts as stuck
GRACE = 300  # seconds that a worker keeps running after a signal to terminate
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # signals that ask a job to terminate

# How workers start. It is set because in a process that was itself spawned, the default would be to
# spawn, which takes seconds.
START = "fork" if sys.platform == "linux" else None

Key = tuple[int, int]  # (epoch, index)


class Augmented(Dataset[Sample]):
    """A dataset whose samples are augmented differently in every epoch.

    Its keys are (epoch, index).

    Args:
        seed: with the epoch and the index, it determines the random numbers of a sample.
    """

    def __init__(self, dataset: DetectionDataset, *, transform: TrainTransform, seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        return self.transform(self.dataset[index], seed=sample_seed(self.seed, epoch, index))


class EpochBatchSampler(Sampler[list[Key]]):
    """Yields this rank's batches of (epoch, index), in a new random order every epoch.

    The shuffled images of an epoch are divided into one batch per optimizer step. An incomplete
    last batch is dropped; if there are fewer images than one step needs, they are repeated to fill
    it. The batch of a step is divided into `num_parts` consecutive parts (for gradient
    accumulation), and each part into one batch per rank. A step therefore trains on the same images
    for any number of ranks and parts.

    Args:
        dataset: its images are not loaded; only the records are used.
        batch_size: images per optimizer step, over all ranks and parts; a multiple of
            `num_parts * num_ranks`.
        seed: seed of the random order, at least 0.
        keep_empty: also use images without any object, or with crowds only.
        group_by_aspect: make each batch of only wide or only tall images (square ones count as
            wide); at most one batch per epoch mixes them.
        max_steps: upper limit of the steps per epoch, or None for no limit.
        num_parts: number of parts of a step, whose gradients are accumulated.
        rank: rank of this process.
        num_ranks: number of processes that train together.

    Attributes:
        num_steps: number of steps in a whole epoch.
        num_batches: number of batches in a step, over all ranks and parts.

    Raises:
        ValueError: `batch_size` is not a multiple of `num_parts * num_ranks`, or `max_steps` is
            below 1.
        DatasetError: there is no image to train on.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        *,
        batch_size: int,
        seed: int,
        keep_empty: bool,
        group_by_aspect: bool = False,
        max_steps: int | None = None,
        num_parts: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % (num_parts * num_ranks):
            raise ValueError(
                f"expected a batch size that is a multiple of {num_parts} parts x {num_ranks} "
                f"ranks, got {batch_size}"
            )
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"expected at least one step per epoch, got {max_steps}")
        assert 0 <= rank < num_ranks
        useful = [keep_empty or not record.iscrowd.all() for record in dataset.records]
        indices = np.flatnonzero(useful)
        self.indices = (
            np.resize(indices, max(len(indices), batch_size)) if len(indices) else indices
        )
        self.wide = np.array([record.width >= record.height for record in dataset.records])
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_aspect = group_by_aspect
        self.num_parts = num_parts
        self.num_batches = num_parts * num_ranks
        self.rank = rank
        self.num_ranks = num_ranks
        self.epoch = 0
        self.first_step = 0
        self.num_steps = len(self.indices) // batch_size
        if max_steps is not None:
            self.num_steps = min(self.num_steps, max_steps)
        if self.num_steps == 0:
            raise DatasetError(
                f"none of the {len(dataset)} images has an object to train on; with "
                "data.keep_empty=true they are used all the same"
            )

    def set_epoch(self, epoch: int, *, first_step: int = 0) -> None:
        """Set the epoch that the next iteration yields, and the number of its steps to skip.

        Args:
            first_step: the steps that were already done when a run resumes within the epoch.
        """
        self.epoch = epoch
        self.first_step = first_step

    def __len__(self) -> int:
        """Return the number of batches of this rank in a whole epoch."""
        return self.num_steps * self.num_parts

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        for step in self._steps()[self.first_step : self.num_steps]:
            for part in step.reshape(self.num_parts, self.num_ranks, -1):
                yield [(epoch, index) for index in part[self.rank].tolist()]

    def _steps(self) -> np.ndarray:
        """Return the image indices of the current epoch, (steps, batch_size)."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.indices)
        if not self.group_by_aspect:
            return _cut(order, self.batch_size)[0]
        wide, wide_rest = _cut(order[self.wide[order]], self.batch_size)
        tall, tall_rest = _cut(order[~self.wide[order]], self.batch_size)
        mixed, _ = _cut(np.concatenate([wide_rest, tall_rest]), self.batch_size)
        return rng.permutation(np.concatenate([wide, tall, mixed]))


def _cut(order: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split an array into full rows (n, size) and the rest (fewer than `size` values)."""
    end = len(order) // size * size
    return order[:end].reshape(-1, size), order[end:]


def batches_of_equal_size(sizes: Iterable[Size], batch_size: int) -> list[list[int]]:
    """Divide images into batches of equal size; return the indices of the images of each batch.

    The batches are in the order of their first images. Within a size the images keep their order,
    and only the last batch may have fewer than `batch_size`.

    Args:
        sizes: the size (h, w) of each image.
        batch_size: at least 1.
    """
    batches: list[list[int]] = []
    newest: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        batch = newest.get(size)
        if batch is None or len(batch) == batch_size:
            batch = newest[size] = []
            batches.append(batch)
        batch.append(index)
    return batches


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def collate(samples: list[Sample]) -> list[Sample]:
    """Return the list of samples unchanged: images differ in size, and the detector takes lists."""
    return samples


def collate_targets(samples: list[Sample]) -> list[Sample]:
    """Return the list of samples without their crowds, which are no targets of training.

    This is done before the batch is copied into pinned memory, because a selection from a tensor
    in pinned memory is not in pinned memory.
    """
    return [without_crowds(sample) for sample in samples]


def without_crowds(sample: Sample) -> Sample:
    """Return the sample without its crowds."""
    keep = ~sample["iscrowd"]
    return sample | {
        "boxes": sample["boxes"][keep],
        "labels": sample["labels"][keep],
        "area": sample["area"][keep],
        "iscrowd": sample["iscrowd"][keep],
    }


def init_worker(worker_id: int) -> None:
    """Limit OpenCV to one thread (PyTorch limits its own), and delay the effect of signals.

    A signal to terminate goes to all processes of a job. If a worker ended at once, the run would
    fail in the middle of a step; instead, the worker ends GRACE seconds later, which gives the run
    time to finish the step and to save a checkpoint.
    """
    cv2.setNumThreads(0)
    for number in SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(GRACE))


class LoadingError(DatasetError):
    """A worker process that loads data died or is stuck."""


@contextmanager
def converted_worker_errors() -> Iterator[None]:
    """Convert torch's errors about dead or stuck workers, in the code that uses the batches.

    torch reports a dead worker from a signal handler, so the error can appear at any point of that
    code. A worker that dies while its batch is fetched can also break the connection first.

    Raises:
        LoadingError: a worker died or is stuck; replaces torch's error.
    """
    # It is entered twice, because the signal can arrive while the error of a broken connection is
    # being converted. There is one signal per worker.
    with _converted_worker_errors(), _converted_worker_errors():
        yield


@contextmanager
def _converted_worker_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        is_of_torch = re.search(r"DataLoader (worker \(pid|timed out)", reason)
        if isinstance(error, RuntimeError) and not is_of_torch:
            raise
        raise LoadingError(
            f"a worker that loads images died or is stuck ({reason}): check whether memory ran "
            "out or the disk is slow, or try data.num_workers=0"
        ) from error


def kill_workers() -> None:
    """Kill the remaining workers at the end of a run; a stuck worker reacts to nothing else."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error
    try:
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
    finally:
        signal.signal(signal.SIGCHLD, before)


def train_loader(
    dataset: Augmented,
    *,
    sampler: EpochBatchSampler,
    num_workers: int,
    pin_memory: bool = False,
    time_limit: float = TIME_LIMIT,
) -> DataLoader[Sample]:
    """Return the loader of training batches, without crowds. Call `sampler.set_epoch` before each
    epoch.

    Args:
        pin_memory: load into pinned memory, for asynchronous copies to a GPU.
        time_limit: seconds that a worker may take for a batch before it is an error.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_targets,
        worker_init_fn=init_worker,
        multiprocessing_context=START if num_workers else None,
        persistent_workers=num_workers > 0,
        timeout=time_limit if num_workers else 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the iterator would draw from the global generator
    )


def eval_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    time_limit: float = TIME_LIMIT,
) -> DataLoader[Sample]:
    """Return a loader of all samples, unchanged, in batches of images of equal size.

    In a batch with a larger image, an image would be padded further, which changes its detections
    slightly. With a batch size of 1 the samples are in the order of the data set; otherwise
    `batches_of_equal_size` gives their order.

    Args:
        batch_size: the largest number of images in a batch.
        pin_memory: load into pinned memory, for asynchronous copies to a GPU.
        time_limit: seconds that a worker may take for a batch before it is an error.
    """
    sizes = ((record.height, record.width) for record in dataset.records)
    return DataLoader(
        dataset,
        batch_sampler=batches_of_equal_size(sizes, batch_size),
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=init_worker,
        multiprocessing_context=START if num_workers else None,
        timeout=time_limit if num_workers else 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
