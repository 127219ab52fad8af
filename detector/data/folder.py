"""Finds the files of a folder by the names in a data set's annotations, and reads files safely."""

import os
import stat
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from detector.data.errors import DatasetError, file_error, printable

MAX_LISTED = 200_000  # files that are searched for a hint


class Folder:
    """A folder in which annotations name files. Each directory in it is listed at most once.

    No name can lead out of the folder: a name is resolved as text, including its `..`, before any
    link is followed. A symbolic link inside the folder counts as a regular file if it points to
    one, wherever that is. Names in annotations are not trusted, but links on the disk are: DVC,
    git-annex and the Hugging Face cache make every image a link that points out of its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self._listings: dict[Path, frozenset[str]] = {}
        self._files: tuple[dict[str, list[Path]], dict[str, list[Path]]] | None = None

    def locate(self, name: str, *, where: str) -> Path:
        """Return the absolute path of `name`, whether or not it exists.

        Args:
            where: the place of the name in the annotations, with which an error message begins.

        Raises:
            DatasetError: the name leads out of the folder.
        """
        path = Path(os.path.abspath(self.root / name))
        if not path.is_relative_to(self.root):
            raise DatasetError(
                f"{where}: file name {printable(repr(name))} leads out of {printable(self.root)}"
            )
        return path

    def holds(self, path: Path, *, where: str) -> bool:
        """Return True if `path`, as returned by `locate`, is a regular file.

        Args:
            where: the place of the name in the annotations, with which an error message begins.

        Raises:
            DatasetError: its directory cannot be listed.
        """
        if path.parent not in self._listings:
            try:
                self._listings[path.parent] = _file_names(path.parent)
            except OSError as error:
                raise DatasetError(
                    f"{where}: folder {printable(path.parent)} cannot be listed ({error.strerror})"
                ) from error
        return path.name in self._listings[path.parent]

    def without_own_name(self, name: str, *, where: str) -> str | None:
        """Return the name without leading folders that end this folder's path, if that file exists.

        For example, "train/1.jpg" becomes "1.jpg" in the folder .../train. Return None if the name
        does not begin with such folders, or if there is no file of the shorter name.
        """
        parts = PurePosixPath(name).parts
        for number in range(1, len(parts)):
            if parts[:number] == self.root.parts[-number:]:
                shorter = str(PurePosixPath(*parts[number:]))
                if self.holds(self.locate(shorter, where=where), where=where):
                    return shorter
        return None

    def hint(self, name: str) -> str:
        """Return "; did you mean ...?" with a file that a missing name may stand for, or "".

        Such a file may differ from the name in its extension, in upper and lower case, in its
        folder, in escapes such as %20, or in the Unicode form of its accents.
        """
        wanted = _normalised(PurePosixPath(unquote(name.replace("\\", "/"))).name)
        stem = wanted.rpartition(".")[0] or wanted
        by_name, by_stem = self._list_files()
        found = by_name.get(wanted) or by_stem.get(stem)
        if not found:
            return ""
        others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"; did you mean {printable(found[0])}{others}?"

    def _list_files(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Return up to about MAX_LISTED files in the folder and below, by name and by stem."""
        if self._files is None:
            self._files = ({}, {})
            number = 0
            for folder, folders, files in os.walk(self.root):
                folders.sort()
                for file in sorted(files):
                    path = Path(folder, file).relative_to(self.root)
                    for names, key in zip(self._files, (path.name, path.stem), strict=True):
                        names.setdefault(_normalised(key), []).append(path)
                number += len(files)
                if number > MAX_LISTED:
                    break
        return self._files


def _normalised(name: str) -> str:
    """Return a name in a form that ignores case and how Unicode composes its accents."""
    return unicodedata.normalize("NFC", name).casefold()


def read_file(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Return the contents of a regular file. A pipe or a device is never opened.

    Raises:
        DatasetError: the file cannot be read, is not a regular file, or is over `max_bytes`.
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
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a valid path
        return frozenset()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or into a folder without permission
        return False
