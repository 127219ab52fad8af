"""The state of a training run, and what advances it.

The trainer is given a built model, optimizer and batches, and knows nothing of the configuration.
Its state is complete between any two steps: a run resumed from a checkpoint taken there computes,
on a CPU, the same bits as a run that was never interrupted.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detector.data.dataset import Sample
from detector.data.loading import EpochBatchSampler, converted_worker_errors
from detector.training.checkpoint import FORMAT, Checkpoint, CheckpointError, keep_checkpoint
from detector.training.distribution import Ranks
from detector.training.loop import (
    NonFiniteError,
    Optimization,
    generator_states,
    restore_generators,
    seed_epoch,
    train_epoch,
)
from detector.training.preemption import StopRequest
from detector.training.record import Record
from detector.training.speed import Speed, peak_memory, reset_peak_memory

log = logging.getLogger(__name__)


class Trainer:
    """Trains epoch by epoch and keeps checkpoints.

    Args:
        batches: the training batches of this rank.
        sampler: the sampler of `batches`, which is told the epoch.
        speed: measures the time and counts the images.
        max_skipped: the number of steps in the whole run that may be left out because their loss
            or gradient is not finite.
        log_every: the number of steps between two progress lines.
        checkpoint_every: the number of steps between two checkpoints within an epoch.
        profile_steps: the number of steps to write a profiler trace of, after the first two steps
            of this process; 0 for no trace.
        folder: the run folder.
        description: the keys of a checkpoint that describe the run: `config`, `classes`,
            `category_ids`, and `data`, the fingerprint of the data.

    Attributes:
        epoch, step: the number of finished epochs and steps.
        position: the number of finished steps of the unfinished epoch.
        skipped: the number of steps that were left out.
        validation: the results of the last evaluation.
        best: the highest value so far of the first metric, by which evaluations are compared.
        since_best: the number of evaluations since `best` was reached.
        seconds, num_images: the time spent in training, without evaluations, and the number of
            images trained on.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimization: Optimization,
        batches: DataLoader[Sample],
        sampler: EpochBatchSampler,
        ranks: Ranks,
        speed: Speed,
        seed: int,
        max_skipped: int,
        log_every: int,
        checkpoint_every: int,
        profile_steps: int,
        folder: Path,
        description: dict[str, Any],
    ) -> None:
        self.model = model
        self.parallel = ranks.parallel(model, optimization.device)
        self.ema = optimization.ema
        self.optimization = optimization
        self.device = optimization.device
        self.batches = batches
        self.sampler = sampler
        self.ranks = ranks
        self.speed = speed
        self.seed = seed
        self.max_skipped = max_skipped
        self.log_every = log_every
        self.checkpoint_every = checkpoint_every
        self.profile_steps = profile_steps
        self.folder = folder
        self.description = description
        self.epoch = 0
        self.step = 0
        self.position = 0
        self.skipped = 0
        self.generators: dict[str, Tensor] = {}  # restored with an unfinished epoch
        self.validation: dict[str, Any] = {}
        self.best = -1.0
        self.since_best = 0
        self.seconds_before = 0.0
        self.num_images_before = 0
        self.peak_memory = 0  # bytes, the largest of this run's processes until the last checkpoint
        reset_peak_memory(self.device)

    @property
    def seconds(self) -> float:
        return self.seconds_before + self.speed.seconds

    @property
    def num_images(self) -> int:
        return self.num_images_before + self.speed.num_images

    @property
    def evaluated_model(self) -> nn.Module:
        """The model to evaluate: that of the averaged weights, if there is an average."""
        return self.model if self.ema is None else self.ema.module

    def train_epoch(self, record: Record, stop: StopRequest) -> None:
        """Train the remaining steps of the epoch; call `finish_epoch` afterwards.

        Raises:
            NonFiniteError: a loss or gradient is not finite. The batch and the weights are saved
                in not_finite.pt.
            Preempted: on all ranks between two steps, if any rank was asked to stop.
        """

        def on_step(scalars: dict[str, float]) -> None:
            self.step += 1
            self.position += 1
            self.speed.step()
            record.advance()
            profile()
            if self.step % self.log_every == 0:
                record.training(self.step, self.epoch + 1, scalars, self.speed.report())
            is_last = self.position == self.sampler.num_steps
            if self.position % self.checkpoint_every == 0 and not is_last:
                self.save()

        seed_epoch(self.seed, self.epoch)
        if self.position:
            restore_generators(self.generators, self.device)
        self.sampler.set_epoch(self.epoch, first_step=self.position)
        try:
            with converted_worker_errors(), self._profiled() as profile:
                train_epoch(
                    self.parallel,
                    self.speed.timed(self.batches),
                    self.optimization,
                    on_step=on_step,
                    on_not_finite=self._skip if self.max_skipped else None,
                    ranks=self.ranks,
                    stop=stop,
                )
        except NonFiniteError as error:
            rank = f"_rank{self.ranks.rank}" if self.ranks.num_ranks > 1 else ""
            path = self.folder / f"not_finite{rank}.pt"
            torch.save({"samples": error.samples, "model": self.model.state_dict()}, path)
            message = f"{error}; the batch and the weights are in {path}"
            raise NonFiniteError(message, error.samples) from error

    def finish_epoch(self) -> None:
        """Count an epoch as finished, after its training and, if it is due, its evaluation."""
        self.epoch += 1
        self.position = 0

    def _skip(self, error: NonFiniteError) -> None:
        """Count a step that is left out.

        Raises:
            NonFiniteError: more than `max_skipped` steps were left out.
        """
        self.skipped += 1
        if self.skipped > self.max_skipped:
            raise error
        log.warning("step left out (%d of %d): %s", self.skipped, self.max_skipped, error)

    @contextmanager
    def _profiled(self) -> Iterator[Any]:
        """Yield a function to call after each step.

        On the first rank it writes a profiler trace of `profile_steps` steps, once per process.
        """
        if not self.profile_steps or not self.ranks.is_first:
            yield lambda: None
            return
        write = torch.profiler.tensorboard_trace_handler(str(self.folder / "profile"))
        steps = torch.profiler.schedule(wait=1, warmup=1, active=self.profile_steps, repeat=1)
        self.profile_steps = 0
        with torch.profiler.profile(schedule=steps, on_trace_ready=write) as profiler:
            yield profiler.step

    def keep_validation(self, validation: dict[str, Any]) -> bool:
        """Keep the results of an evaluation; return whether it is the best so far."""
        self.validation = validation
        first = next(iter(validation["metrics"].values())) or 0.0
        is_best = first > self.best
        self.since_best = 0 if is_best else self.since_best + 1
        self.best = max(first, self.best)
        return is_best

    def save(self, *, is_best: bool = False, is_nth: bool = False) -> None:
        """On the first rank, write checkpoints/last.pt.

        Args:
            is_best: also keep the checkpoint as best.pt.
            is_nth: also keep the checkpoint as step_<N>.pt.
        """
        if self.ranks.is_first:
            folder = self.folder / "checkpoints"
            keep_checkpoint(folder, self.checkpoint(), is_best=is_best, is_nth=is_nth)

    def checkpoint(self) -> Checkpoint:
        """Return everything that `restore` needs, as dictionaries, lists and tensors."""
        self.peak_memory = max(self.peak_memory, peak_memory(self.device))
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimization.optimizer.state_dict(),
            "schedule": self.optimization.lr_schedule.state_dict(),
            "scaler": self.optimization.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "position": self.position,
            "skipped": self.skipped,
            "generators": generator_states(self.device),
            "seconds": self.seconds,
            "num_images": self.num_images,
            "peak_memory": self.peak_memory,
            "validation": self.validation,
            "best": self.best,
            "since_best": self.since_best,
            **self.description,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint of the same configuration.

        Raises:
            CheckpointError: the checkpoint is of a run on other images or annotations.
        """
        if checkpoint["data"] != self.description["data"]:
            raise CheckpointError(
                "the images or their annotations are not those that the run began with: take "
                "another run folder, or resume=none"
            )
        self.model.load_state_dict(checkpoint["model"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"])
        self.optimization.optimizer.load_state_dict(checkpoint["optimizer"])
        self.optimization.lr_schedule.load_state_dict(checkpoint["schedule"])
        self.optimization.scaler.load_state_dict(checkpoint["scaler"])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.position, self.generators = checkpoint["position"], checkpoint["generators"]
        self.skipped, self.since_best = checkpoint["skipped"], checkpoint["since_best"]
        self.validation, self.best = checkpoint["validation"], checkpoint["best"]
        self.seconds_before = checkpoint["seconds"]
        self.num_images_before = checkpoint["num_images"]
        self.peak_memory = checkpoint.get("peak_memory", 0)  # older checkpoints lack it
