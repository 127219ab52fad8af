"""Which checkpoint a run goes on from, and whether it is that run's."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_newest

# How long, where and how talkative a run is may change; its parts are the same images.
FREE = frozenset(
    "device devices max_restarts rank_timeout data.num_workers schedule.num_parts schedule.epochs "
    "schedule.evaluate_every schedule.patience max_skipped_steps resume log_every "
    "checkpoint_every keep_every profile_steps plan".split()
)


def checkpoint_to_resume(
    resume: str,
    folder: Path,
    config: dict[str, Any],
    completed: Callable[[dict[str, Any]], dict[str, Any]],
) -> Checkpoint | None:
    """The checkpoint that a run goes on from, if any.

    Args:
        resume: `auto` is the newest of the run's own; `none`; or the path of another. A process
            that was started again in place of one that died goes on from the newest, whatever it
            was first told.
        folder: of the run.
        config: in plain containers.
        completed: adds what a configuration of an earlier version lacks.

    Raises:
        CheckpointError: it cannot be read, or is another run's.
    """
    newest = load_newest(folder / "checkpoints") if resume == "auto" or is_restart() else None
    if newest is not None:
        path, checkpoint = newest
    elif resume in ("auto", "none"):
        return None
    else:
        path, checkpoint = Path(resume), load_checkpoint(Path(resume))
    if checkpoint["optimizer"] is None:
        raise CheckpointError(
            f"{path} was converted from other weights and is no run to go on with: give "
            f"model.weights={path}"
        )
    check_same_run(completed(checkpoint["config"]), config, str(path))
    return checkpoint


def is_restart() -> bool:
    """Whether torchrun or `launch.py` started this process in place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def check_same_run(before: dict[str, Any], now: dict[str, Any], path: str) -> None:
    """A run goes on with the configuration that it began with, or it would be neither's result.

    Raises:
        CheckpointError: something else changed than what is free to.
    """
    before, now = flat(before), flat(now)
    for key in sorted((before.keys() | now.keys()) - FREE):
        if before.get(key) != now.get(key):
            raise CheckpointError(
                f"{path} was trained with {key}={before.get(key)}, not {now.get(key)}: "
                "take another run folder, or resume=none"
            )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        items |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return items
