"""Checkpoints: everything that is needed to resume a run, in one file of dicts, lists and tensors.

    model, optimizer, schedule,
    scaler                             state dicts
    ema                                state dict of the averaged weights, or None
    epoch, step, seconds, num_images   finished epochs and steps, seconds and images of training
    skipped                            how many of the steps were left out as not finite
    position, generators               finished steps of the unfinished epoch; the states of the
                                       random generators after them
    validation                         the results of the last evaluation
    best, since_best                   the best metric of all evaluations; how many evaluations
                                       since then were not better
    config, classes, category_ids      the configuration, and the names and ids of the classes
    data                               the fingerprint of the training and validation data
    peak_memory                        bytes; missing in older checkpoints
    format                             the number of this file format; missing in format 1

A run keeps last.pt, previous.pt, best.pt and every n-th checkpoint as step_<N>.pt. If it is killed
while it saves, the file from before stays whole (`durable.py` explains how). A damaged file is
recognised by its SHA-256 and refused. Files are read with torch.load(weights_only=True), so that
loading a checkpoint never runs code from it.

    python -m detector.training.checkpoint export CHECKPOINT DIRECTORY
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from detector import exit_codes
from detector.training.durable import named_digests, publish, publish_copy, sha256, sidecar, staged

log = logging.getLogger(__name__)

KEYS = frozenset(
    "model ema optimizer schedule scaler epoch step seconds num_images skipped position generators "
    "validation best since_best config classes category_ids data".split()
)

FORMAT = 3  # added `model.neck` and `model.nms`; `config.completed` adds them to older formats

Checkpoint = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written, or does not fit. The message names the file."""

    exit_code = exit_codes.FAILED


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and its SHA-256, either completely or not at all.

    Raises:
        CheckpointError: the file cannot be written; an older file of this name is still whole.
    """
    with _write_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _staged(path, checkpoint) as (temporary, digest):
            publish(temporary, path, digest)


def keep_checkpoint(folder: Path, checkpoint: Checkpoint, *, is_best: bool, is_nth: bool) -> None:
    """Write a run's checkpoint as last.pt, and keep the old last.pt as previous.pt.

    With `is_best` the checkpoint is also kept as best.pt, with `is_nth` as step_<N>.pt; these are
    hard links to last.pt. last.pt is replaced after all others: a run that is killed before that
    resumes from the old last.pt and writes the others again.

    Raises:
        CheckpointError: the file cannot be written; the older files are still whole.
    """
    last = folder / "last.pt"
    with _write_errors_named(last):
        folder.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in folder.glob("*.tmp"):
            left_by_a_kill.unlink()
        with _staged(last, checkpoint) as (temporary, digest):
            if is_best:
                publish_copy(temporary, folder / "best.pt", digest)
            if is_nth:
                publish_copy(temporary, folder / f"step_{checkpoint['step']}.pt", digest)
            if last.exists():
                _keep_previous(last)
            publish(temporary, last, digest)


def _keep_previous(last: Path) -> None:
    """Link last.pt as previous.pt, unless it is damaged: then previous.pt may be the last whole
    checkpoint.
    """
    digest, named = sha256(last), named_digests(last)
    if named is None or digest in named:
        publish_copy(last, last.with_name("previous.pt"), digest)
    else:
        log.warning("%s is damaged and replaced; previous.pt stays as it was", last)


def _staged(path: Path, checkpoint: Checkpoint) -> AbstractContextManager[tuple[Path, str]]:
    assert checkpoint.keys() >= KEYS
    return staged(path, lambda file: torch.save(checkpoint, file))


@contextmanager
def _write_errors_named(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a CheckpointError that names the checkpoint."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save may raise its own error about the unfinished archive, with the disk's error
        # as its context.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise CheckpointError(f"{path}: cannot be written ({reason.strerror or reason})") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. If its SHA-256 file is missing, only warn.

    Raises:
        CheckpointError: the file does not exist, is damaged, or is not a checkpoint.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: cannot be read: is not a file")
    try:
        checkpoint = _load(path)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # torch.load raises many kinds on a broken file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({reason}){_hint(path)}"
        ) from error
    if isinstance(checkpoint, dict) and checkpoint.get("format", 1) > FORMAT:
        raise CheckpointError(
            f"{path}: is of format {checkpoint['format']}, written by a newer version; this "
            f"version reads up to {FORMAT}: update the application"
        )
    missing = KEYS - checkpoint.keys() if isinstance(checkpoint, dict) else KEYS
    if missing:
        lacks = ", ".join(sorted(missing))
        raise CheckpointError(
            f"{path}: is not a checkpoint of this application: lacks {lacks}{_hint(path)}"
        )
    return checkpoint


def _hint(path: Path) -> str:
    return f". If another framework wrote it, look at it: python -m detector.model.weights {path}"


def _load(path: Path) -> Any:
    """Load a file after comparing its SHA-256 with the one stored beside it."""
    with path.open("rb") as file:
        named = named_digests(path)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if named is not None and digest not in named:
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                # A run has replaced the file since it was opened: the SHA-256 is the new file's.
                return _load(path)
            raise CheckpointError(f"{path}: is damaged: its SHA-256 is not in {sidecar(path).name}")
        if named is None:
            name = sidecar(path).name
            log.warning("%s has no %s beside it: it is not checked for damage", path, name)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def load_newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """Return the newest checkpoint of a run that can be read, and its path.

    last.pt is tried first, then previous.pt, then step_<N>.pt from the largest N down. A warning
    names each one that cannot be read.

    Args:
        folder: the run's folder of checkpoints.

    Returns:
        None if there are no checkpoints.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    steps = [path for path in folder.glob("step_*.pt") if path.stem[5:].isdecimal()]
    steps.sort(key=lambda path: int(path.stem[5:]), reverse=True)
    paths = [folder / "last.pt", folder / "previous.pt", *steps]
    broken = []
    for path in paths:
        if not path.exists():
            continue
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            log.warning("%s; trying the one before", error)
            broken.append(path.name)
    if broken:
        raise CheckpointError(f"{folder}: none of the checkpoints can be read: {', '.join(broken)}")
    return None
