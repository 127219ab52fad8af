"""The error of every reader, and how a name from outside is put into its one line."""

from pathlib import Path

MAX_SHOWN = 400  # characters


class DatasetError(ValueError):
    """Data that cannot be used as it is. The message names the file and the image or annotation."""


def shown(text: object) -> str:
    """A name, or a value, as it is; but escaped if it would break the line, cut if it is long."""
    words = str(text)
    if len(words) > MAX_SHOWN:
        words = words[: MAX_SHOWN // 2] + "..." + words[-MAX_SHOWN // 2 :]
    return words if words.isprintable() else ascii(words)


def file_error(path: Path, reason: object) -> DatasetError:
    """The error of a whole file; the reason, often another library's, on one line."""
    return DatasetError(f"{shown(path)}: {shown(' '.join(str(reason).split()))}")
