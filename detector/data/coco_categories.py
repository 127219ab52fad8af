"""Reads the categories of a COCO-format file, and matches them with the classes of the training."""

from pathlib import Path

from detector.class_names import class_named
from detector.data.errors import DatasetError, Faults, printable
from detector.data.json_fields import Json, entries_of, field, id_field
from detector.data.values import as_integer


def read_categories(
    content: Json, file: Path, faults: Faults, wanted: tuple[str, ...] | None
) -> dict[int, str]:
    """Return the class names by category id, in the order of ascending ids.

    A category without objects is left out if another one has the same name, or if another one has
    it as its `supercategory` (as Roboflow writes) and `wanted` does not list it.
    """
    objects = content.get("annotations")
    used = {
        as_integer(entry.get("category_id"))
        for entry in (objects if type(objects) is list else ())
        if type(entry) is dict
    }
    names: dict[int, str] = {}
    parents = set()
    for place, entry in entries_of(content, "categories", file):
        category_id = id_field(entry, "id", place, faults)
        name = field(entry, "name", str, place).strip()
        parent = entry.get("supercategory")
        if type(parent) is str and parent != name:
            parents.add(parent)
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DatasetError(f"{place}: 'name' is {name!r}, which is not valid Unicode text")
        if category_id in names:
            raise DatasetError(f"{place}: an earlier category has the same id")
        twin = next((other for other, known in names.items() if known == name), None)
        if twin is not None:
            unused = next((one for one in (category_id, twin) if one not in used), None)
            if unused is None:
                raise DatasetError(
                    f"{place}: an earlier category has the same name {printable(repr(name))}, and "
                    f"both have objects: rename one, or give the objects of this one the id {twin}"
                )
            detail = f"{place}: an earlier category has the same name {printable(repr(name))}"
            faults.accepted("category twice", f"{detail}; the one without objects is left out")
            names.pop(unused, None)
            if unused == category_id:
                continue
        names[category_id] = name
    for category_id in list(names):
        name = names[category_id]
        is_placeholder = name in parents and category_id not in used and len(names) > 1
        if is_placeholder and name not in (wanted or ()):
            del names[category_id]
            detail = (
                f"{file}: category {printable(repr(name))} has no object and is a supercategory"
            )
            faults.warning("no class", f"{detail}: it is left out unless data.classes lists it")
    return dict(sorted(names.items()))


def match_classes(
    classes: tuple[str, ...], categories: dict[int, str], faults: Faults
) -> dict[int, str]:
    """Return the given classes by category id, in the given order.

    A class that the file has keeps the file's category id; any other class gets a new id. The
    file's other categories are left out, so that an object of one of them is an error.
    """
    if len(set(classes)) != len(classes):
        raise DatasetError(f"classes {', '.join(classes)}: a name is listed twice")
    ids = {name: category_id for category_id, name in categories.items()}
    exact = {name: ids.pop(name) for name in classes if name in ids}
    new = max(categories, default=0)
    result = {}
    for name in classes:
        theirs = None if name in exact else class_named(name, ids)
        if name in exact:
            category_id = exact[name]
        elif theirs is not None:
            faults.accepted(
                "class in other capitals", f"{printable(theirs)} is read as {printable(name)}"
            )
            category_id = ids.pop(theirs)
        else:
            category_id = new = new + 1
        result[category_id] = name
    return result
