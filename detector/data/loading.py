"""From a dataset to batches. What a batch holds is a function of (seed, epoch, position) alone.

The order of an epoch is made in the main process and carries the epoch to the workers, so neither
their number, nor their age, nor a resume changes a sample.
"""

import multiprocessing
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.data.dataset import DatasetError, DetectionDataset, Sample
from detector.data.transforms import TrainTransform, sample_seed

TIME_LIMIT = 600.0  # seconds for a batch, beyond which its worker is stuck
GRACE = 20  # seconds that a worker goes on when it is told to leave
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # by which a job is told to leave

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

    An epoch is cut into global batches of `num_ranks * batch_size`, of which this rank takes its
    part; what is left over at the end is dropped.

    Args:
        dataset: only its records are looked at.
        batch_size: of this rank.
        seed: of the order; at least 0.
        keep_empty: whether images without an object, crowds aside, are used.
        rank, num_ranks: this process among those that train together.

    Raises:
        DatasetError: there are fewer images than a global batch takes.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        *,
        batch_size: int,
        seed: int,
        keep_empty: bool,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"expected a batch size of 1 or more, got {batch_size}")
        assert 0 <= rank < num_ranks
        useful = [keep_empty or not record.iscrowd.all() for record in dataset.records]
        self.indices = np.flatnonzero(useful)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.epoch = 0
        self.first_batch = 0
        if len(self) == 0:
            raise DatasetError(
                f"a batch takes {batch_size * num_ranks} images, the data set has "
                f"{len(self.indices)} ({len(dataset)} less "
                f"{len(dataset) - len(self.indices)} without an object)"
            )

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Which epoch is next; to resume within it, how many of its batches are done."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.indices) // (self.batch_size * self.num_ranks)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.indices).tolist()
        for batch in range(self.first_batch, len(self)):
            start = (batch * self.num_ranks + self.rank) * self.batch_size
            yield [(epoch, index) for index in order[start : start + self.batch_size]]


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
    """Around the use of batches: torch reports a dead worker by a signal, wherever the run is.

    Raises:
        LoadingError: in place of what torch says of a dead or stuck worker.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not re.search(r"DataLoader (worker \(pid|timed out)", reason):
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
    time_limit: float = TIME_LIMIT,
) -> DataLoader[Sample]:
    """Transformed batches; before each epoch, tell the sampler which one it is.

    A batch that takes a worker longer than `time_limit` seconds is an error.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        persistent_workers=num_workers > 0,
        timeout=time_limit if num_workers else 0,
        generator=torch.Generator(),  # else an iterator draws from the global one
    )


def eval_loader(dataset: Dataset[Sample], *, num_workers: int) -> DataLoader[Sample]:
    """Every sample once, as it is, in order, and alone: beside a larger image it would be padded
    further, and its detections would be slightly others.
    """
    return DataLoader(
        dataset,
        batch_size=1,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        generator=torch.Generator(),
    )
