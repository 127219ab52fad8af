"""Checkpoints: everything a run needs to go on, in one file of plain containers and tensors.

    model, optimizer, schedule,
    scaler                             state dicts
    ema                                the average of the weights, or None
    epoch, step, seconds, num_images   done so far; `skipped` steps of these were left out
    position, generators               steps done of the next epoch; the random generators then
    validation, best                   what the last evaluation found; the best metric of all,
                                       which `since_best` evaluations have not reached
    config, classes, category_ids      what is trained, on what
    format                             of all this, by its number; the first has none

A run keeps last.pt, previous.pt, best.pt and every n-th as step_<N>.pt. A kill while saving leaves
the file before (`durable.py` says how), and a damaged file is refused by its SHA-256. It is read
with `weights_only`: a checkpoint runs no code.

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

FORMAT = 3  # since `model.neck` and `model.nms`, which `config.completed` adds to those before

Checkpoint = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, written or does not fit. The message names the file."""

    exit_code = exit_codes.FAILED


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file and its SHA-256 beside it, whole or not at all.

    Raises:
        CheckpointError: it cannot be written; a file that was there before can still be read.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _staged(path, checkpoint) as (temporary, digest):
            publish(temporary, path, digest)


def keep_checkpoint(folder: Path, checkpoint: Checkpoint, *, is_best: bool, is_nth: bool) -> None:
    """Write last.pt; the one before becomes previous.pt, this one also best.pt and step_<N>.pt.

    They are hard links to one file, best.pt and step_<N>.pt made first: a run that is killed in
    between goes on from the last.pt before and makes them again.

    Raises:
        CheckpointError: it cannot be written; the files that were there can still be read.
    """
    last = folder / "last.pt"
    with _naming(last):
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
    """Make last.pt previous.pt too, unless it is damaged: previous.pt may be the only whole one."""
    digest, named = sha256(last), named_digests(last)
    if named is None or digest in named:
        publish_copy(last, last.with_name("previous.pt"), digest)
    else:
        log.warning("%s is damaged and replaced; previous.pt stays as it was", last)


def _staged(path: Path, checkpoint: Checkpoint) -> AbstractContextManager[tuple[Path, str]]:
    assert checkpoint.keys() >= KEYS
    return staged(path, lambda file: torch.save(checkpoint, file))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the disk's errors into one that names the checkpoint."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save may hide the disk's error behind one of its own about the unfinished archive.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise CheckpointError(f"{path}: cannot be written ({reason.strerror or reason})") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. One without a SHA-256 beside it is read with a warning.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is something else.
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
            f"{path}: cannot be read as a checkpoint ({reason}){_of_others(path)}"
        ) from error
    if isinstance(checkpoint, dict) and checkpoint.get("format", 1) > FORMAT:
        raise CheckpointError(
            f"{path}: is of format {checkpoint['format']}, written by a newer version; this one "
            f"reads up to {FORMAT}: update it"
        )
    missing = KEYS - checkpoint.keys() if isinstance(checkpoint, dict) else KEYS
    if missing:
        lacks = ", ".join(sorted(missing))
        raise CheckpointError(
            f"{path}: is not a checkpoint of this application: lacks {lacks}{_of_others(path)}"
        )
    return checkpoint


def _of_others(path: Path) -> str:
    return f". If it is another framework's: python -m detector.model.weights {path}"


def _load(path: Path) -> Any:
    """The content of a file whose SHA-256 is the one beside it."""
    with path.open("rb") as file:
        named = named_digests(path)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if named is not None and digest not in named:
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return _load(path)  # a run has saved meanwhile: the sidecar is of the new file
            raise CheckpointError(f"{path}: is damaged: its SHA-256 is not in {sidecar(path).name}")
        if named is None:
            log.warning("%s has no %s beside it: not checked", path, sidecar(path).name)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def load_newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint of a run that loads: last.pt, previous.pt, then step_<N>.pt.

    Returns None if there is none. Each that does not load is named in a warning.

    Raises:
        CheckpointError: there are some, and none loads.
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
        raise CheckpointError(f"{folder}: no checkpoint can be read, of {', '.join(broken)}")
    return None
