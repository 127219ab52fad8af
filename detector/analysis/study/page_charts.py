"""Draws the charts of a study's page, as SVG within HTML."""

import html
from collections.abc import Callable
from typing import Any

import numpy as np

from detector.analysis.charts import cost_and_metric, forest, svg, training_curves
from detector.analysis.study.sentences import found_nothing

Lines = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # arm -> the curve of each seed


def charts(study: dict[str, Any]) -> str:
    """Return the charts in HTML: intervals, training curves, and the metric beside its cost.

    A sentence stands for a chart that would show nothing.
    """
    primary, sentences, figures = study["primary"], [], []
    rows = forest_rows(study)
    has_learned = not found_nothing(study)
    if not has_learned:
        sentences.append(
            f"Differences and cost are not drawn, since no arm reaches one point of {primary}."
        )
    elif rows:
        label = f"difference of {primary} from {study['baseline']}, points (ticks: single seeds)"
        figures.append(("Differences and their 95 % intervals", forest(rows, label)))
    if not has_curves(curves(study, lambda line: line["epoch"])):
        sentences.append("Training curves are not drawn, since no run was evaluated twice.")
    for title, x, value in (
        (f"{primary} over epochs, each seed and the mean", "epoch", lambda line: line["epoch"]),
        (f"{primary} over seconds of training", "seconds", lambda line: line.get("seconds")),
    ):
        lines = curves(study, value)
        if has_curves(lines):
            figures.append((title, training_curves(lines, x, primary)))
    if has_learned and all("seconds_per_image" in arm["costs"] for arm in study["arms"]):
        points = {
            arm["arm"]: (
                1000 * arm["costs"]["seconds_per_image"],
                100 * arm["numbers"][primary]["mean"],
            )
            for arm in study["arms"]
        }
        figures.append((f"{primary} beside cost", cost_and_metric(points, "ms an image", primary)))
    return (
        "".join(f"<p class=note>{html.escape(sentence)}</p>" for sentence in sentences)
        + "<div class=charts>"
        + "".join(
            f"<figure><figcaption>{html.escape(title)}</figcaption>{svg(figure)}</figure>"
            for title, figure in figures
        )
        + "</div>"
    )


def forest_rows(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each arm's differences, overall and by size of the objects, as `forest` takes them."""
    primary, rows = study["primary"], []
    arms = {one["arm"]: one["numbers"] for one in study["arms"]}
    for one in study["comparisons"]:
        for name in (primary, "APs", "APm", "APl"):
            if name not in one["differences"]:
                continue
            found = one["differences"][name]
            ours, theirs = arms[one["arm"]][name]["seeds"], arms[study["baseline"]][name]["seeds"]
            rows.append(
                {
                    "label": one["arm"] if name == primary else f"{one['arm']}, {name}",
                    "seeds": [100 * (ours[s] - theirs[s]) for s in ours.keys() & theirs.keys()],
                    **{key: 100 * found[key] for key in ("value", "low", "high")},
                }
            )
    return rows


def curves(study: dict[str, Any], x: Callable[[dict[str, Any]], float | None]) -> Lines:
    """Return the training curves of all runs.

    Args:
        x: gives the place of an evaluation along the x axis, or None to leave it out.

    Returns:
        Arm -> for each seed, the xs and the primary metric in percent.
    """
    primary = study["primary"]
    lines: Lines = {}
    for arm in study["arms"]:
        for curve in arm["curves"].values():
            points = [
                (x(line), 100 * line[primary])
                for line in curve
                if x(line) is not None and line.get(primary) is not None
            ]
            values = np.array(points, dtype=float).reshape(-1, 2)
            lines.setdefault(arm["arm"], []).append((values[:, 0], values[:, 1]))
    return lines


def has_curves(lines: Lines) -> bool:
    """Return whether any curve has two points, so that there is a line to draw."""
    return any(len(xs) > 1 for seeds in lines.values() for xs, _ in seeds)
