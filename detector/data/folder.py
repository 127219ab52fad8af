"""The files of one folder, found by the names that a data set's annotations give them."""

import os
import stat
from pathlib import Path

from detector.data.errors import DatasetError, file_error, shown


class Folder:
    """A folder that annotations name files in. Every directory below it is listed once.

    No name leads out of the folder: names are resolved as they are written, `..` before any link
    is followed. A symbolic link that lies in the folder counts as the regular file that it is in
    place of, wherever that is. Names come from strangers, links from whoever laid out the disk:
    DVC, git-annex and the Hugging Face cache make every image a link out of its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self._listings: dict[Path, frozenset[str]] = {}

    def locate(self, name: str, *, where: str) -> Path:
        """The absolute path of `name`, which may not exist.

        Raises:
            DatasetError: the name leads out of the folder. `where` opens the message.
        """
        path = Path(os.path.abspath(self.root / name))
        if not path.is_relative_to(self.root):
            raise DatasetError(
                f"{where}: file name {shown(repr(name))} leads out of {shown(self.root)}"
            )
        return path

    def holds(self, path: Path, *, where: str) -> bool:
        """Whether this path, as `locate` gave it, is a regular file.

        Raises:
            DatasetError: its directory cannot be listed. `where` opens the message.
        """
        if path.parent not in self._listings:
            try:
                self._listings[path.parent] = _file_names(path.parent)
            except OSError as error:
                raise DatasetError(
                    f"{where}: folder {shown(path.parent)} cannot be listed ({error.strerror})"
                ) from error
        return path.name in self._listings[path.parent]


def read_file(path: Path, *, max_bytes: int | None = None) -> bytes:
    """The contents of a regular file: a pipe or a device is never opened.

    Raises:
        DatasetError: the file cannot be read, is no regular file or has more bytes than these.
    """
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and (max_bytes is None or status.st_size <= max_bytes):
            return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise file_error(path, f"cannot be read ({reason})") from error
    if not stat.S_ISREG(status.st_mode):
        raise file_error(path, "cannot be read (not a regular file)")
    raise file_error(path, f"has {status.st_size} bytes, expected at most {max_bytes}")


def _file_names(directory: Path) -> frozenset[str]:
    try:
        with os.scandir(directory) as entries:
            return frozenset(entry.name for entry in entries if _is_file(entry))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a name at all
        return frozenset()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or into a folder that is closed to us
        return False
