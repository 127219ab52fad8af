"""Checkpoints: everything a run needs to go on, in one file of plain containers and tensors.

    model, optimizer, schedule         state dicts
    epoch, step, seconds, num_images   done so far
    position, generators               batches done of the next epoch; the random generators then
    validation, best                   what the last evaluation found; the best metric of all
    config, classes, category_ids      what is trained, on what

A file is written beside its target and renamed, so that a run that is killed while saving leaves
the file before. It is read with `weights_only`: a checkpoint runs no code.
"""

import os
from pathlib import Path
from typing import Any

import torch

KEYS = frozenset(
    "model optimizer schedule epoch step seconds num_images position generators validation best "
    "config classes category_ids".split()
)

Checkpoint = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit. The message names the file."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all."""
    assert checkpoint.keys() >= KEYS
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: there is no such file, it is broken, or it is something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # torch.load raises many kinds on a broken file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= KEYS:
        raise CheckpointError(f"{path}: is not a checkpoint of this application")
    return checkpoint
