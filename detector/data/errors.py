"""What is wrong with data: the error of every reader, the list of faults that it can go on with,
and how a name from outside is put into one line.
"""

from pathlib import Path
from typing import NamedTuple

from detector import exit_codes

MAX_SHOWN = 400  # characters


class DatasetError(ValueError):
    """Data that cannot be used as it is. The message names the file and the image or annotation."""

    exit_code = exit_codes.FAILED


class Fault(NamedTuple):
    """Something wrong with one image or object."""

    severity: str  # "error": it is left out; "warning": it is used, or nothing is lost without it
    kind: str
    detail: str  # one line that names the file and the object
    image_id: int | None = None


class Faults:
    """The faults of a data set, as its reader comes upon them.

    Args:
        on_error: "stop": an error is raised. "warn": what it is about is left out.
    """

    def __init__(self, on_error: str) -> None:
        assert on_error in ("stop", "warn")
        self.on_error = on_error
        self.found: list[Fault] = []
        self._taken: set[str] = set()

    def error(self, kind: str, error: DatasetError, image_id: int | None = None) -> None:
        """Something cannot be used.

        Raises:
            DatasetError: this error, if it is to stop the reader.
        """
        if self.on_error == "stop":
            raise error
        self.found.append(Fault("error", kind, str(error), image_id))

    def warning(self, kind: str, detail: str, image_id: int | None = None) -> None:
        """Something is odd."""
        self.found.append(Fault("warning", kind, detail, image_id))

    def taken(self, kind: str, detail: str) -> None:
        """Something is not as it should be and can be read in one way only: so it is taken. The
        first of a kind is listed.
        """
        if kind not in self._taken:
            self._taken.add(kind)
            self.warning(kind, f"{detail} (accepted, like all others of this kind)")


def shown(text: object) -> str:
    """A name, or a value, as it is; but escaped if it would break the line, cut if it is long."""
    words = str(text)
    if len(words) > MAX_SHOWN:
        words = words[: MAX_SHOWN // 2] + "..." + words[-MAX_SHOWN // 2 :]
    return words if words.isprintable() else ascii(words)


def file_error(path: Path, reason: object) -> DatasetError:
    """The error of a whole file; the reason, often another library's, on one line."""
    return DatasetError(f"{shown(path)}: {shown(' '.join(str(reason).split()))}")
