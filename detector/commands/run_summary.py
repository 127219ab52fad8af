"""The content of a run's summary.json: how the run ended, and its results."""

import json
from pathlib import Path
from typing import Any

from detector.config import config_hash
from detector.schema import TrainConfig
from detector.training.launch import WorkersError
from detector.training.preemption import Preempted
from detector.training.record import num_parameters
from detector.training.trainer import Trainer


def finished(config: TrainConfig, result: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a run that has finished.

    Args:
        result: what `results` returns.
    """
    return {"status": "done", **identity(config), **result}


def broken_off(config: TrainConfig, error: BaseException) -> dict[str, Any]:
    """Return the summary of a run that an error or a signal ended."""
    if isinstance(error, Preempted):
        return {"status": "preempted", **identity(config), "signal": str(error)}
    kind = error.kind if isinstance(error, WorkersError) else type(error).__name__
    return {"status": "failed", **identity(config), "error": f"{kind}: {error}"}


def identity(config: TrainConfig) -> dict[str, Any]:
    """Return the values that distinguish a run from others."""
    return {"seed": config.seed, "config_hash": config_hash(config)}


def results(trainer: Trainer, config: TrainConfig) -> dict[str, Any]:
    """Return the results of the last evaluation, and what the training cost."""
    transform = config.data.transform
    return {
        **trainer.validation,
        "epochs": trainer.epoch,
        "skipped_steps": trainer.skipped,
        "train_seconds": trainer.seconds,
        "images_per_second": trainer.num_images / trainer.seconds,
        "seconds_per_step": trainer.seconds / max(trainer.step, 1),
        "peak_memory": trainer.peak_memory,
        "num_parameters": num_parameters(trainer.model),
        "gflops": trainer.speed.flops_per_pixel * transform.min_size * transform.max_size / 1e9,
        "best": trainer.best,
    }


def seconds_if_done(folder: Path) -> float | None:
    """Return the seconds of training of a run that has finished; None if it has not."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    return summary["train_seconds"] if summary.get("status") == "done" else None
