"""Times some steps of a training."""

import time
from itertools import islice, pairwise
from pathlib import Path

import torch

from detector.builders.training import build_trainer
from detector.data.dataset import DetectionDataset
from detector.schema import TrainConfig
from detector.training.distribution import SINGLE_PROCESS
from detector.training.loop import train_epoch
from detector.training.trainer import Trainer


def step_seconds(
    config: TrainConfig,
    train_set: DetectionDataset,
    *,
    device: torch.device,
    steps: int,
    warm_up: int,
    memory_format: torch.memory_format | None = None,
) -> tuple[Trainer, list[float]]:
    """Train for some steps, without evaluation and without a run folder.

    Args:
        warm_up: the number of first steps that are not timed, at least 1.

    Returns:
        The trainer, and the seconds of each of the `steps` steps that follow the warm-up.
    """
    trainer = build_trainer(
        config, train_set, device=device, ranks=SINGLE_PROCESS, folder=Path(), fingerprint=""
    )
    if memory_format is not None:
        trainer.model.to(memory_format=memory_format)
    ends: list[float] = []

    def on_step(_: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())

    batches = islice(trainer.batches, steps + warm_up)
    train_epoch(trainer.model, batches, trainer.optimization, on_step=on_step)
    return trainer, [after - before for before, after in pairwise(ends[warm_up - 1 :])]
