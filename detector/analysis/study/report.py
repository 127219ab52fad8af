"""Writes study.json as markdown, to be read in a terminal, a pull request or a README."""

from collections.abc import Iterator
from typing import Any

from detector.analysis.offsets.report import Rows, dilation_rows, offsets_rows
from detector.analysis.study.run_metrics import CLASS, ERROR
from detector.analysis.study.sentences import method, power_statement
from detector.tables import table

SHOWN_CLASSES = 5  # this many of the best classes, and this many of the worst


def markdown(study: dict[str, Any]) -> str:
    """Return the whole report."""
    parts = [f"# Study: {study['primary']} of {len(study['arms'])} arms", study["says"]]
    parts.append(table(*arms_rows(study)))
    if study["comparisons"]:
        parts.append(method(study))
    if power := power_statement(study):
        parts.append(power)
    for title, rows in sections(study):
        parts += [f"## {title}", table(*rows)]
    if study["notes"]:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in study["notes"]))
    return "\n\n".join(parts) + "\n"


def sections(study: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    """Yield the title and the table of each section that follows the table of the arms."""
    numbers = study["arms"][0]["numbers"]
    overall = [name for name in numbers if not name.startswith((CLASS, ERROR))]
    if len(overall) > 1:
        yield "By threshold and size", numbers_rows(study, {name: name for name in overall})
    shown, title = ranked_classes(study), "By class"
    if len(shown) > 2 * SHOWN_CLASSES:
        rest = len(shown) - 2 * SHOWN_CLASSES
        shown = shown[:SHOWN_CLASSES] + shown[-SHOWN_CLASSES:]
        title = f"By class: the best and worst five, {rest} more in study.json"
    if shown:
        yield title, numbers_rows(study, {CLASS + name: name for name in shown})
    if kinds := errors_of(numbers):
        title = "By kind of error: the AP50 that fixing all errors of a kind would add"
        yield title, numbers_rows(study, {ERROR + kind: kind for kind in kinds})
    yield "Cost, as measured", cost_rows(study)
    for arm, one in study.get("learned", {}).items():
        if not any(layer["is_deformable"] for layer in one["layers"].values()):
            continue
        title = f"What {arm} learned, seed {one['seed']}, {one['num_images']} images"
        yield f"{title}: effective dilation", dilation_rows(one["layers"])
        yield f"{title}: offsets and masks", offsets_rows(one["layers"])


def arms_rows(study: dict[str, Any]) -> Rows:
    """Return a row for each arm: its primary metric, and how it differs from the baseline's."""
    primary = study["primary"]
    compared = {one["arm"]: one for one in study["comparisons"]}
    rows = []
    for arm in study["arms"]:
        number = arm["numbers"][primary]
        seeds = ", ".join(percent(value) for value in number["seeds"].values())
        compare, p = ["", "the baseline"], ""
        if arm["arm"] in compared:
            one = compared[arm["arm"]]
            compare = [interval(one["differences"][primary]), one["verdict"]]
            is_judged = one["differences"][primary]["covers"] == "images and seeds"
            p = f"{one['p_holm']:.3f}" if is_judged else ""
        rows.append([arm["arm"], percent(number["mean"]), *compare, p, seeds])
    return [
        "arm",
        primary,
        "difference, 95 % interval",
        "verdict",
        "p (Holm)",
        "single seeds",
    ], rows


def numbers_rows(study: dict[str, Any], names: dict[str, str]) -> Rows:
    """Return a row for each number: the baseline's mean, and each other arm's mean and difference.

    Args:
        names: name of a number in study.json -> its label in the table.
    """
    baseline = study["baseline"]
    arms = {one["arm"]: one["numbers"] for one in study["arms"]}
    header = ["", baseline]
    for one in study["comparisons"]:
        header += [one["arm"], "difference"]
    rows = []
    for name, shown in names.items():
        row = [shown, percent(arms[baseline][name]["mean"])]
        for one in study["comparisons"]:
            row += [percent(arms[one["arm"]][name]["mean"]), interval(one["differences"][name])]
        rows.append(row)
    return header, rows


def ranked_classes(study: dict[str, Any]) -> list[str]:
    """Return the classes, those first in which the first arm gained most over the baseline."""
    names = list(classes_of(study["arms"][0]["numbers"]))
    if not study["comparisons"]:
        return names
    gains = classes_of(study["comparisons"][0]["differences"])
    return sorted(names, key=lambda name: -gains[name]["value"])


def cost_rows(study: dict[str, Any]) -> Rows:
    """Return a row for each arm: what it costs in parameters, time and memory."""
    units = {
        "num_parameters": ("M parameters", 1e-6, ".2f"),
        "gflops": ("GFLOP an image", 1, ".2f"),
        "seconds_per_step": ("s/step", 1, ".3f"),
        "seconds_per_image": ("s/image", 1, ".4f"),
        "peak_memory": ("peak MiB", 2**-20, ".0f"),
        "train_seconds": ("s/training", 1, ".0f"),
    }
    shown = [cost for cost in units if any(cost in arm["costs"] for arm in study["arms"])]
    rows = []
    for arm in study["arms"]:
        row = [arm["arm"]]
        for cost in shown:
            _, scale, digits = units[cost]
            value = arm["costs"].get(cost)
            row.append("-" if value is None else format(scale * value, digits))
        rows.append(row)
    return ["arm", *(units[cost][0] for cost in shown)], rows


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def interval(one: dict[str, Any]) -> str:
    """Format a difference and its confidence interval, in points."""
    return f"{100 * one['value']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"


def classes_of(numbers: dict[str, Any]) -> dict[str, Any]:
    """Select the numbers of single classes: class name -> its entry."""
    return {k.removeprefix(CLASS): v for k, v in numbers.items() if k.startswith(CLASS)}


def errors_of(numbers: dict[str, Any]) -> dict[str, Any]:
    """Select the numbers of kinds of errors: kind -> its entry."""
    return {k.removeprefix(ERROR): v for k, v in numbers.items() if k.startswith(ERROR)}
