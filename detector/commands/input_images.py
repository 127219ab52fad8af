"""The images that a command is given: a file, or those of a folder."""

import os
from collections import Counter
from pathlib import Path

from detector.data.errors import DatasetError
from detector.data.images import SUFFIXES

NEEDS_OTHERS = (".heic", ".heif", ".avif")  # not ignored: an error says what can read them


def image_paths(images: Path, *, recursive: bool, exclude: Path) -> tuple[list[Path], Counter[str]]:
    """List the images of a file or folder.

    Args:
        images: an image file, or a folder of images.
        recursive: also list the images of subfolders.
        exclude: a subfolder to leave out, such as the one with earlier predictions.

    Returns:
        The images in the order of their paths, and the number of other files for each suffix.

    Raises:
        DatasetError: the path does not exist, or the folder has no image.
    """
    if not images.is_dir():
        if not images.is_file():
            raise DatasetError(f"images={images}: no such file or folder")
        return [images], Counter()
    paths, others = [], Counter[str]()
    for folder, folders, names in os.walk(images):
        inside = [name for name in folders if not name.startswith(".")]
        inside = [name for name in inside if Path(folder, name).resolve() != exclude.resolve()]
        folders[:] = inside if recursive else []
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in (*SUFFIXES, *NEEDS_OTHERS):
                paths.append(path)
            else:
                others[path.suffix.lower() or "without an ending"] += 1
    if not paths:
        besides = f"; it holds {in_words(others)}" if others else ""
        raise DatasetError(f"images={images}: holds no {', '.join(SUFFIXES)}{besides}")
    return sorted(paths), others


def in_words(kinds: Counter[str]) -> str:
    """Format numbers of files by kind, such as "3 .txt, 1 .xml"."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
