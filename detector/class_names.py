"""Which class a name means, among those of the training."""

from collections.abc import Collection


def class_named(name: str, classes: Collection[str]) -> str | None:
    """The class of this name; or else the only one that differs in capitals and surrounding blanks
    alone; or else None.
    """
    if name in classes:
        return name
    alike = [known for known in classes if _plain(known) == _plain(name)]
    return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()
