"""The files of one folder, found by the names that a data set's annotations give them."""

import os
import stat
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from detector.data.errors import DatasetError, file_error, shown

MAX_LISTED = 200_000  # files that are looked through for a hint


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
        self._files: tuple[dict[str, list[Path]], dict[str, list[Path]]] | None = None

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

    def without_own_name(self, name: str, *, where: str) -> str | None:
        """The name without the folders that it repeats, as "train/1.jpg" does in .../train; None if
        there is no such file.
        """
        parts = PurePosixPath(name).parts
        for number in range(1, len(parts)):
            if parts[:number] == self.root.parts[-number:]:
                shorter = str(PurePosixPath(*parts[number:]))
                if self.holds(self.locate(shorter, where=where), where=where):
                    return shorter
        return None

    def hint(self, name: str) -> str:
        """What a name that is not there may have been meant to be: "; did you mean ...?" or "".

        The same with another extension or in other capitals, in a sub-folder, without its folder,
        with its %20 decoded, or with accents written otherwise.
        """
        wanted = _alike(PurePosixPath(unquote(name.replace("\\", "/"))).name)
        stem = wanted.rpartition(".")[0] or wanted
        by_name, by_stem = self._below()
        found = by_name.get(wanted) or by_stem.get(stem)
        if not found:
            return ""
        others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"; did you mean {shown(found[0])}{others}?"

    def _below(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """The files of the folder and of those in it, to a limit, by name and by stem."""
        if self._files is None:
            self._files = ({}, {})
            number = 0
            for folder, folders, files in os.walk(self.root):
                folders.sort()
                for file in sorted(files):
                    path = Path(folder, file).relative_to(self.root)
                    for names, key in zip(self._files, (path.name, path.stem), strict=True):
                        names.setdefault(_alike(key), []).append(path)
                number += len(files)
                if number > MAX_LISTED:
                    break
        return self._files


def _alike(name: str) -> str:
    """In lower case, and with accents in one of the two forms that Unicode has for them."""
    return unicodedata.normalize("NFC", name).casefold()


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
