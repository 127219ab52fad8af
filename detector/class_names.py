"""Matches class names of other files with the classes of a training."""

from collections.abc import Collection


def class_named(name: str, classes: Collection[str]) -> str | None:
    """Return the class that a name refers to.

    This is the class of exactly this name. If there is none, it is the class that differs only in
    letter case and whitespace, provided that there is just one such class; otherwise None.
    """
    if name in classes:
        return name
    alike = [known for known in classes if _plain(known) == _plain(name)]
    return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()
