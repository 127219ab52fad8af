"""Single values of JSON files, found by a path and formatted."""

from typing import Any


def value(content: Any, path: str, form: str) -> str:
    """Format the value at a path.

    Args:
        content: the content of a JSON file.
        path, form: as in a `value` comment; see the module's docstring.

    Raises:
        ValueError: the path leads to no value or to several.
    """
    found = [content]
    for step in path.split("/"):
        found = [inner for one in found for inner in _step(one, step)]
    which, _, rest = form.partition(" ")
    if which in ("least", "most"):
        found, form = [min(found) if which == "least" else max(found)], rest
    if len(found) != 1:
        raise ValueError(f"{path} leads to {len(found)} values, expected one")
    factor, times, rest = form.partition("* ")
    return format(float(factor) * found[0], rest) if times else format(found[0], form)


def _step(one: Any, step: str) -> list[Any]:
    """Return the entries of a list or an object that one step of a path selects."""
    if isinstance(one, dict):
        return list(one.values()) if step == "*" else [one[step]]
    if step == "*":
        return list(one)
    if step.lstrip("-").isdecimal():
        return [one[int(step)]]
    for condition in step.split(","):
        key, _, wanted = condition.partition("=")
        is_other = key.endswith("!")
        one = [each for each in one if (str(each[key.rstrip("!")]) == wanted) != is_other]
    return list(one)
