"""The error that every reader of data raises, the faults that it collects, and safe messages."""

from pathlib import Path
from typing import NamedTuple

from detector import exit_codes

MAX_SHOWN = 400  # the most characters of a name or value in a message


class DatasetError(ValueError):
    """Data that cannot be used as it is. The message names the file and the image or annotation."""

    exit_code = exit_codes.FAILED


class Fault(NamedTuple):
    """A problem of one image or object that its reader can continue with."""

    severity: str  # "error": unusable and left out; "warning": used, or left out without loss
    kind: str
    detail: str  # one line that names the file and the object
    image_id: int | None = None


class Faults:
    """Collects the faults of a data set while it is read.

    Args:
        on_error: "stop" raises the first error; "warn" collects errors, and the reader leaves out
            the images and objects that they concern.

    Attributes:
        found: the faults so far, in the order in which they were found.
    """

    def __init__(self, on_error: str) -> None:
        assert on_error in ("stop", "warn")
        self.on_error = on_error
        self.found: list[Fault] = []
        self._accepted: set[str] = set()

    def error(self, kind: str, error: DatasetError, image_id: int | None = None) -> None:
        """Report an image or object that cannot be used.

        Raises:
            DatasetError: the given error, if `on_error` is "stop".
        """
        if self.on_error == "stop":
            raise error
        self.found.append(Fault("error", kind, str(error), image_id))

    def warning(self, kind: str, detail: str, image_id: int | None = None) -> None:
        """Report something unusual that can be continued with."""
        self.found.append(Fault("warning", kind, detail, image_id))

    def accepted(self, kind: str, detail: str) -> None:
        """Report a deviation that was accepted, as it has only one possible meaning.

        Only the first deviation of each kind is added to the faults.
        """
        if kind not in self._accepted:
            self._accepted.add(kind)
            self.warning(kind, f"{detail} (accepted, like all others of this kind)")


def printable(text: object) -> str:
    """Return the text of a name or value for use in a one-line message.

    Text with unprintable characters is escaped; text over `MAX_SHOWN` characters loses its middle.
    """
    words = str(text)
    if len(words) > MAX_SHOWN:
        words = words[: MAX_SHOWN // 2] + "..." + words[-MAX_SHOWN // 2 :]
    return words if words.isprintable() else ascii(words)


def file_error(path: Path, reason: object) -> DatasetError:
    """Return the error for a file, with the reason (often another library's) put on one line."""
    return DatasetError(f"{printable(path)}: {printable(' '.join(str(reason).split()))}")
