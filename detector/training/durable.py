"""Files that survive a kill in the middle of a write: they are either old or new, never half.

A file is written under a temporary name in the same folder, synced to the disk, then renamed. A
checkpoint's SHA-256 is kept beside it, in `NAME.sha256` (the sidecar), in the format that sha256sum
writes and checks. Temporary files end in `.tmp`; if a kill leaves one behind, the next save
replaces it.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class _HashedFile(io.BufferedWriter):
    """A file that hashes the data given to `write`, rather than what the disk has stored."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self.sha256 = hashlib.sha256()

    def write(self, data: Any, /) -> int:  # any bytes-like object
        self.sha256.update(data)
        return super().write(data)


@contextmanager
def staged(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[tuple[Path, str]]:
    """Write the new content of `path` to a temporary file beside it, and sync it to the disk.

    The temporary file is deleted on exit, unless it was renamed.

    Args:
        path: the file that the caller is about to replace.
        write: called with the open file, writes the content.

    Yields:
        The path of the temporary file and the SHA-256 of its content.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = _temporary(path)
    # A temporary file left by a kill may be a hard link to a checkpoint that is kept: unlink it,
    # never overwrite it.
    temporary.unlink(missing_ok=True)
    try:
        with _HashedFile(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary, file.sha256.hexdigest()
    finally:
        temporary.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, synced, either completely or not at all, without a SHA-256 beside it."""
    with staged(path, lambda file: file.write(content)) as (temporary, _):
        _rename(temporary, path)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, either completely or not at all, but not synced.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n")
    os.replace(temporary, path)


def publish(temporary: Path, path: Path, digest: str) -> None:
    """Rename a synced file to `path`, and write its SHA-256, `digest`, to the sidecar.

    A file and its sidecar cannot be renamed in one step. So the sidecar is written first, with both
    the new and the old digest; then the file is renamed; then the sidecar is written with the new
    digest alone. A kill between any two of these steps leaves a whole file, old or new, whose
    digest is in its sidecar. A damaged file has neither digest.
    """
    present = named_digests(path)
    if present is None:  # without its digest in the new sidecar the old file would seem damaged
        present = [sha256(path)] if path.exists() else []
    _write_sidecar(path, [digest, *present])
    _rename(temporary, path)
    _write_sidecar(path, [digest])


def publish_copy(source: Path, path: Path, digest: str) -> None:
    """Publish a hard link to a synced file or, if the file system has no hard links, a copy."""
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            _copy(source, temporary)
        publish(temporary, path, digest)
    finally:  # if both names already link to one file, the rename leaves the temporary name
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(path: Path) -> Path:
    """Return the path of the file that holds the SHA-256 of `path`."""
    return path.with_name(path.name + ".sha256")


def named_digests(path: Path) -> list[str] | None:
    """Return the digests in the sidecar of `path`.

    The result is None if there is no sidecar, and empty if the sidecar itself is damaged.
    """
    try:
        content = sidecar(path).read_bytes()
    except FileNotFoundError:
        return None
    line = rb"([0-9a-f]{64})  " + re.escape(os.fsencode(path.name)) + rb"\n"
    if not re.fullmatch(b"(?:" + line + b")+", content):
        return []
    return [digest.decode() for digest in re.findall(line, content)]


def _write_sidecar(path: Path, digests: list[str]) -> None:
    lines = [f"{digest}  ".encode() + os.fsencode(path.name) + b"\n" for digest in digests]
    write_synced(sidecar(path), b"".join(lines))


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("xb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def _rename(old: Path, new: Path) -> None:
    """Rename a file within its folder, and sync the folder so that the rename survives."""
    os.replace(old, new)
    folder = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
