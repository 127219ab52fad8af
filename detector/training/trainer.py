"""The state of a run, and how it advances.

What it is given is built already: it knows tensors, batches and files, not the configuration. Its
state is whole between any two steps: a checkpoint from there goes on to the same bits.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from detector.data.dataset import Sample
from detector.data.loading import EpochBatchSampler, worker_errors_named
from detector.training.checkpoint import Checkpoint, keep_checkpoint
from detector.training.loop import (
    NonFiniteError,
    generator_states,
    restore_generators,
    seed_epoch,
    train_epoch,
)
from detector.training.preemption import StopRequest
from detector.training.record import Record


class Trainer:
    """Trains epoch by epoch and keeps checkpoints.

    Args:
        batches, sampler: the training batches, and the sampler within that orders them by epoch.
        clip_norm: the gradient's largest norm, or None.
        log_every: steps between two lines of progress.
        checkpoint_every: steps between two checkpoints within an epoch.
        description: what each checkpoint says of the run: `config`, `classes`, `category_ids`.

    Attributes:
        epoch, step: done so far.
        position: batches done of the epoch that is not finished.
        validation: what the last evaluation found; its `metrics` are compared by their first.
        best: the highest first metric of all evaluations.
        seconds, num_images: spent and seen in training, evaluation apart.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        lr_schedule: LRScheduler,
        batches: DataLoader[Sample],
        sampler: EpochBatchSampler,
        device: torch.device,
        precision: torch.dtype,
        clip_norm: float | None,
        seed: int,
        log_every: int,
        checkpoint_every: int,
        folder: Path,
        description: dict[str, Any],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.batches = batches
        self.sampler = sampler
        self.device = device
        self.precision = precision
        self.clip_norm = clip_norm
        self.seed = seed
        self.log_every = log_every
        self.checkpoint_every = checkpoint_every
        self.folder = folder
        self.description = description
        self.epoch = 0
        self.step = 0
        self.position = 0
        self.generators: dict[str, Tensor] = {}  # of an epoch that was left
        self.validation: dict[str, Any] = {}
        self.best = -1.0
        self.seconds = 0.0
        self.num_images = 0

    def train_epoch(self, record: Record, stop: StopRequest) -> None:
        """Train what is left of the epoch, reporting progress; `finish_epoch` then counts it.

        Raises:
            Preempted: between two steps.
        """

        def on_step(scalars: dict[str, float]) -> None:
            self.step += 1
            self.position += 1
            self.num_images += self.sampler.batch_size
            if self.step % self.log_every == 0:
                record.training(self.step, self.epoch + 1, scalars)
            if self.position % self.checkpoint_every == 0 and self.position < len(self.sampler):
                self.seconds += clock.restart()
                self.save()

        seed_epoch(self.seed, self.epoch)
        if self.position:
            restore_generators(self.generators, self.device)
        self.sampler.set_epoch(self.epoch, first_batch=self.position)
        clock = _Clock()
        try:
            with worker_errors_named():
                train_epoch(
                    self.model,
                    stop.between(self.batches),
                    optimizer=self.optimizer,
                    lr_schedule=self.lr_schedule,
                    device=self.device,
                    precision=self.precision,
                    clip_norm=self.clip_norm,
                    on_step=on_step,
                )
        except NonFiniteError as error:
            path = self.folder / "not_finite.pt"
            torch.save({"samples": error.samples, "model": self.model.state_dict()}, path)
            message = f"{error}; the batch and the weights are in {path}"
            raise NonFiniteError(message, error.samples) from error
        finally:
            self.seconds += clock.restart()

    def finish_epoch(self) -> None:
        """Count an epoch that is trained and, where it is due, evaluated."""
        self.epoch += 1
        self.position = 0

    def note(self, validation: dict[str, Any]) -> bool:
        """Take what an evaluation found; return whether it is the best so far."""
        self.validation = validation
        first = next(iter(validation["metrics"].values())) or 0.0
        is_best = first > self.best
        self.best = max(first, self.best)
        return is_best

    def save(self, *, is_best: bool = False, is_nth: bool = False) -> None:
        """Write checkpoints/last.pt; also best.pt if it is, and step_<N>.pt if it is an n-th."""
        folder = self.folder / "checkpoints"
        keep_checkpoint(folder, self.checkpoint(), is_best=is_best, is_nth=is_nth)

    def checkpoint(self) -> Checkpoint:
        """All that `restore` needs, in plain containers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "position": self.position,
            "generators": generator_states(self.device),
            "seconds": self.seconds,
            "num_images": self.num_images,
            "validation": self.validation,
            "best": self.best,
            **self.description,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same configuration."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.lr_schedule.load_state_dict(checkpoint["schedule"])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.position, self.generators = checkpoint["position"], checkpoint["generators"]
        self.seconds, self.num_images = checkpoint["seconds"], checkpoint["num_images"]
        self.validation, self.best = checkpoint["validation"], checkpoint["best"]


class _Clock:
    """Seconds since it was made or restarted."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def restart(self) -> float:
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        return elapsed
