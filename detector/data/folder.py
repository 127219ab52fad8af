"""The files of one folder, found by the names that a data set's annotations give them."""

import os
from pathlib import Path

from detector.data.dataset import DatasetError


class Folder:
    """A folder that annotations name files in. Every directory below it is listed once.

    Names are checked as they are written, so that a symbolic link counts as the file it is in
    place of: linked data sets work, and no name leads out of the folder.
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
            raise DatasetError(f"{where}: file name {name!r} leads out of {self.root}")
        return path

    def holds(self, path: Path) -> bool:
        """Whether this path, as `locate` gave it, is a file.

        Raises:
            DatasetError: its directory cannot be listed.
        """
        if path.parent not in self._listings:
            self._listings[path.parent] = _file_names(path.parent)
        return path.name in self._listings[path.parent]


def _file_names(directory: Path) -> frozenset[str]:
    try:
        with os.scandir(directory) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a name at all
        return frozenset()
    except OSError as error:
        raise DatasetError(f"{directory}: cannot be listed ({error})") from error
