"""From a dataset to batches. What a batch holds is a function of (seed, epoch, position) alone.

The order of an epoch is made in the main process and carries the epoch to the workers, so neither
their number, nor their age, nor a resume changes a sample.
"""

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.data.dataset import DatasetError, DetectionDataset, Sample
from detector.data.transforms import TrainTransform, sample_seed

TIME_LIMIT = 600.0  # seconds for a batch, beyond which its worker is stuck
GRACE = 300  # seconds that a worker goes on when it is told to leave
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # by which a job is told to leave

# The default of most systems; a process that was spawned would spawn, which takes seconds.
START = "fork" if sys.platform == "linux" else None

Key = tuple[int, int]  # (epoch, index)


class Augmented(Dataset[Sample]):
    """A dataset whose samples are transformed, anew in every epoch. Its keys: (epoch, index)."""

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
    """Batches of (epoch, index), the images in a new order every epoch.

    An epoch is cut into the batches of its steps; what is left over at the end is dropped, and
    fewer images than a step takes are repeated until they fill one. The
    batch of a step is cut in turn into `num_parts` that follow each other and, within each, into
    one batch a rank. So a step trains on the same images however many ranks and parts there are.

    Args:
        dataset: only its records are looked at.
        batch_size: of a step, over all ranks and parts: a multiple of both.
        seed: of the order; at least 0.
        keep_empty: whether images without an object, crowds aside, are used.
        group_by_aspect: whether a batch has only wide or only tall images, but for one an epoch.
        max_steps: of an epoch; None is as many as there are.
        num_parts: of a step, whose gradients are accumulated.
        rank, num_ranks: this process among those that train together.

    Attributes:
        num_steps: of a whole epoch.
        num_batches: of a step, over all ranks and parts.

    Raises:
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
        """Which epoch is next; to resume within it, how many of its steps are done."""
        self.epoch = epoch
        self.first_step = first_step

    def __len__(self) -> int:
        """Batches of a whole epoch, on this rank."""
        return self.num_steps * self.num_parts

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        for step in self._steps()[self.first_step : self.num_steps]:
            for part in step.reshape(self.num_parts, self.num_ranks, -1):
                yield [(epoch, index) for index in part[self.rank].tolist()]

    def _steps(self) -> np.ndarray:
        """Indices (steps, batch size) of the current epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.indices)
        if not self.group_by_aspect:
            return _cut(order, self.batch_size)[0]
        wide, wide_rest = _cut(order[self.wide[order]], self.batch_size)
        tall, tall_rest = _cut(order[~self.wide[order]], self.batch_size)
        mixed, _ = _cut(np.concatenate([wide_rest, tall_rest]), self.batch_size)
        return rng.permutation(np.concatenate([wide, tall, mixed]))


def _cut(order: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, size) of an array, and what is left over."""
    end = len(order) // size * size
    return order[:end].reshape(-1, size), order[end:]


def num_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def collate(samples: list[Sample]) -> list[Sample]:
    """The samples as they are: images differ in size, and the detector takes lists."""
    return samples


def worker_init(worker_id: int) -> None:
    """One thread a worker, in OpenCV too (PyTorch sees to its own).

    Signals go to all processes of a job. A worker that died of one at once would stop the run in
    the middle of a step: it gives the run time to finish that and to save.
    """
    cv2.setNumThreads(0)
    for number in SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(GRACE))


class LoadingError(DatasetError):
    """A worker process died or is stuck."""


@contextmanager
def worker_errors_named() -> Iterator[None]:
    """Around the use of batches: torch reports a dead worker by a signal, wherever the run is. One
    that dies while its batch is being fetched breaks the connection first.

    Raises:
        LoadingError: in place of what torch says of a dead or stuck worker.
    """
    # Twice: after a broken connection the signal can come while that error is being named. It
    # comes once for a worker.
    with _worker_errors_named(), _worker_errors_named():
        yield


@contextmanager
def _worker_errors_named() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        is_of_torch = re.search(r"DataLoader (worker \(pid|timed out)", reason)
        if isinstance(error, RuntimeError) and not is_of_torch:
            raise
        raise LoadingError(
            f"a worker that loads images died or is stuck ({reason}): look for a full memory or "
            "a slow disk, or try data.num_workers=0"
        ) from error


def kill_workers() -> None:
    """End what workers are left, at the end of a run: a stuck one obeys nothing else."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises
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
    """Transformed batches; before each epoch, tell the sampler which one it is.

    Args:
        pin_memory: for copies to a GPU that nothing waits for.
        time_limit: seconds for a batch; a worker that takes longer is an error.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        multiprocessing_context=START if num_workers else None,
        persistent_workers=num_workers > 0,
        timeout=time_limit if num_workers else 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else an iterator draws from the global one
    )


def eval_loader(
    dataset: Dataset[Sample], *, num_workers: int, time_limit: float = TIME_LIMIT
) -> DataLoader[Sample]:
    """Every sample once, as it is, in order, and alone: beside a larger image it would be padded
    further, and its detections would be slightly others.

    Args:
        time_limit: seconds for a sample; a worker that takes longer is an error.
    """
    return DataLoader(
        dataset,
        batch_size=1,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        multiprocessing_context=START if num_workers else None,
        timeout=time_limit if num_workers else 0,
        generator=torch.Generator(),
    )
