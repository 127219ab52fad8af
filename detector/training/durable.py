"""Files that outlive a kill: written beside their target, synced, renamed, with their SHA-256.

It stands in `NAME.sha256` beside `NAME`, in the format that sha256sum writes and checks.
Temporary files end in `.tmp`; one that a kill leaves behind is replaced by the next save.
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
    """Hashes what it is given to write, so that what the disk makes of it does not count."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self.sha256 = hashlib.sha256()

    def write(self, data: Any, /) -> int:  # any bytes-like object
        self.sha256.update(data)
        return super().write(data)


@contextmanager
def staged(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[tuple[Path, str]]:
    """The new content of `path` on disk beside it, and its SHA-256; gone afterwards if not renamed.

    Raises:
        OSError: it cannot be written.
    """
    temporary = _temporary(path)
    # What a kill left there may be a hard link to a kept file: unlinked, never overwritten.
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
    """Write a file, whole or not at all, without a SHA-256 beside it."""
    with staged(path, lambda file: file.write(content)) as (temporary, _):
        _rename(temporary, path)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all. NaN is refused: JSON has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n")
    os.replace(temporary, path)


def publish(temporary: Path, path: Path, digest: str) -> None:
    """Make a synced file the new `path`, of which `digest` is the SHA-256.

    A file and its sidecar cannot be renamed together. So the sidecar goes first, and names both
    the coming digest and the present one; then the file; then the sidecar forgets the old digest.
    A kill between any two of them leaves a whole file, old or new, that its sidecar names; a
    damaged file has neither digest.
    """
    present = named_digests(path)
    if present is None:  # a file without a sidecar needs one before the new sidecar disowns it
        present = [sha256(path)] if path.exists() else []
    _write_sidecar(path, [digest, *present])
    _rename(temporary, path)
    _write_sidecar(path, [digest])


def publish_copy(source: Path, path: Path, digest: str) -> None:
    """Publish a hard link to a synced file or, where the file system has none, a copy."""
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            _copy(source, temporary)
        publish(temporary, path, digest)
    finally:  # also where both were links to one file already: then a rename does nothing
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of the file as it is now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(path: Path) -> Path:
    """Where the SHA-256 of a file stands."""
    return path.with_name(path.name + ".sha256")


def named_digests(path: Path) -> list[str] | None:
    """What the sidecar of `path` names: None without one, nothing if it is damaged itself."""
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
    """Within a folder, and durable: the folder is synced."""
    os.replace(old, new)
    folder = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
