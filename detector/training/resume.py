"""Choose the checkpoint from which a run resumes, and check that it is of the same run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_newest

# Keys that may change when a run is resumed: its length, its devices and restarts, the steps that
# it may leave out, how many images it evaluates at once, and what it logs and keeps.
# `schedule.num_parts` is one: a step trains on the same images however many parts it has.
MAY_CHANGE = frozenset(
    "device devices max_restarts rank_timeout data.num_workers schedule.num_parts schedule.epochs "
    "schedule.evaluate_every schedule.patience max_skipped_steps eval_batch_size resume log_every "
    "checkpoint_every keep_every profile_steps plan".split()
)


def checkpoint_to_resume(
    resume: str,
    folder: Path,
    config: dict[str, Any],
    completed: Callable[[dict[str, Any]], dict[str, Any]],
) -> Checkpoint | None:
    """Return the checkpoint from which a run resumes, or None if it starts anew.

    Args:
        resume: `auto` for the newest checkpoint in the run folder, `none` to start anew, or the
            path of a checkpoint. A process that replaces one that died always resumes from the
            newest checkpoint in the run folder, if there is one.
        folder: the run folder.
        config: the run's configuration, as dictionaries and lists.
        completed: adds the keys that a configuration of an older version lacks.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is of another run.
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
            f"{path} was converted from other weights and holds no run to resume: give "
            f"model.weights={path}"
        )
    check_same_run(completed(checkpoint["config"]), config, str(path))
    return checkpoint


def is_restart() -> bool:
    """Return whether torchrun or `launch.py` started this process to replace one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def check_same_run(before: dict[str, Any], now: dict[str, Any], path: str) -> None:
    """Check that a resumed run has the configuration that it began with, except for the keys in
    `MAY_CHANGE`.

    Args:
        before: the configuration in the checkpoint.
        now: the configuration of this run.
        path: the checkpoint's path, for the message.

    Raises:
        CheckpointError: another key has changed.
    """
    before, now = flat(before), flat(now)
    for key in sorted((before.keys() | now.keys()) - MAY_CHANGE):
        if before.get(key) != now.get(key):
            raise CheckpointError(
                f"{path} was trained with {key}={before.get(key)}, not {now.get(key)}: "
                "take another run folder, or resume=none"
            )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries into one, joining their keys with dots."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        items |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return items
