"""The state of a run, and how it advances by an epoch.

What it is given is built already: it knows tensors, batches and files, not the configuration.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from detector.data.dataset import Sample
from detector.data.loading import EpochBatchSampler
from detector.training.checkpoint import Checkpoint, save_checkpoint
from detector.training.loop import seed_epoch, train_epoch
from detector.training.record import Record


class Trainer:
    """Trains epoch by epoch and keeps checkpoints.

    Args:
        batches, sampler: the training batches, and the sampler within that orders them by epoch.
        clip_norm: the gradient's largest norm, or None.
        log_every: steps between two lines of progress.
        description: what each checkpoint says of the run: `config`, `classes`, `category_ids`.

    Attributes:
        epoch, step: done so far.
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
        self.folder = folder
        self.description = description
        self.epoch = 0
        self.step = 0
        self.validation: dict[str, Any] = {}
        self.best = -1.0
        self.seconds = 0.0
        self.num_images = 0

    def train_epoch(self, record: Record) -> None:
        """Advance by one epoch, reporting progress."""

        def on_step(scalars: dict[str, float]) -> None:
            self.step += 1
            self.num_images += self.sampler.batch_size
            if self.step % self.log_every == 0:
                record.training(self.step, self.epoch + 1, scalars)

        start = time.perf_counter()
        seed_epoch(self.seed, self.epoch)
        self.sampler.set_epoch(self.epoch)
        train_epoch(
            self.model,
            self.batches,
            optimizer=self.optimizer,
            lr_schedule=self.lr_schedule,
            device=self.device,
            precision=self.precision,
            clip_norm=self.clip_norm,
            on_step=on_step,
        )
        self.seconds += time.perf_counter() - start
        self.epoch += 1

    def note(self, validation: dict[str, Any]) -> bool:
        """Take what an evaluation found; return whether it is the best so far."""
        self.validation = validation
        first = next(iter(validation["metrics"].values())) or 0.0
        is_best = first > self.best
        self.best = max(first, self.best)
        return is_best

    def save(self, *, is_best: bool) -> None:
        """Write checkpoints/last.pt, and before it best.pt if it is."""
        for name in [*(["best.pt"] if is_best else []), "last.pt"]:
            save_checkpoint(self.folder / "checkpoints" / name, self.checkpoint())

    def checkpoint(self) -> Checkpoint:
        """All that `restore` needs, in plain containers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
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
        self.seconds, self.num_images = checkpoint["seconds"], checkpoint["num_images"]
        self.validation, self.best = checkpoint["validation"], checkpoint["best"]
