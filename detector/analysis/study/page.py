"""Writes study.html: one file that works from disk without a network.

Charts are SVG drawn by matplotlib, and tables are those of study.md. The interactive parts are in
`page.js`, which reads the images and feature maps that `explorer.py` collects.
"""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detector.analysis.charts import cost_and_gain, forest, spread, svg
from detector.analysis.study.report import METHOD, arms_rows, could_have_seen, sections

HERE = Path(__file__).parent


def page(study: dict[str, Any], explorer: dict[str, Any] | None) -> str:
    """Return the HTML document.

    Args:
        study: the content of study.json.
        explorer: the data of `page.js`, which `look` in `detector/commands/study.py` collects; None
            if there are no checkpoints or no images.
    """
    parts = [
        f"<p class=says>{html.escape(study['says'])}</p>",
        table(*arms_rows(study)),
        f"<p>{html.escape(METHOD.format_map(study))}</p>" if study["comparisons"] else "",
        f"<p>{html.escape(could_have_seen(study))}</p>",
        charts(study),
    ]
    if explorer is not None:
        parts.append((HERE / "explorer.html").read_text(encoding="utf-8"))
    parts += [f"<h2>{html.escape(title)}</h2>{table(*rows)}" for title, rows in sections(study)]
    if study["notes"]:
        listed = "".join(f"<li>{html.escape(note)}</li>" for note in study["notes"])
        parts.append(f"<h2>Notes</h2><ul>{listed}</ul>")
    # Without this, a class or file name that contains </script> would end the script element.
    data = json.dumps(explorer).replace("<", "\\u003c")
    template = (HERE / "page.html").read_text(encoding="utf-8")
    for mark, content in {
        "@TITLE@": html.escape(f"Study: {study['primary']} of {len(study['arms'])} arms"),
        "@STYLE@": (HERE / "page.css").read_text(encoding="utf-8"),
        "@SCRIPT@": (HERE / "page.js").read_text(encoding="utf-8"),
        "@BODY@": "\n".join(part for part in parts if part),
        "@DATA@": data,
    }.items():
        template = template.replace(mark, content)
    return template


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in HTML; a wide table scrolls within the page."""

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<div class=wide><table><thead>{line(header, 'th')}</thead>{body}</table></div>"


def charts(study: dict[str, Any]) -> str:
    """Return the charts in HTML: intervals, training curves, and the metric beside its cost."""
    primary, figures = study["primary"], []
    rows = forest_rows(study)
    if rows:
        label = f"difference of {primary} from {study['baseline']}, points (ticks: each seed)"
        figures.append(("Differences and their 95 % intervals", forest(rows, label)))
    for title, x, value in (
        (f"{primary} over epochs, each seed and the mean", "epoch", lambda line: line["epoch"]),
        (f"{primary} over seconds of training", "seconds", lambda line: line.get("seconds")),
    ):
        lines = curves(study, value)
        if any(len(xs) > 1 for seeds in lines.values() for xs, _ in seeds):
            figures.append((title, spread(lines, x, primary)))
    if all("seconds_per_image" in arm["costs"] for arm in study["arms"]):
        points = {
            arm["arm"]: (
                1000 * arm["costs"]["seconds_per_image"],
                100 * arm["numbers"][primary]["mean"],
            )
            for arm in study["arms"]
        }
        figures.append((f"{primary} beside cost", cost_and_gain(points, "ms an image", primary)))
    return (
        "<div class=charts>"
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


def curves(
    study: dict[str, Any], x: Callable[[dict[str, Any]], float | None]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the training curves of all runs.

    Args:
        x: gives the place of an evaluation along the x axis, or None to leave it out.

    Returns:
        Arm -> for each seed, the xs and the primary metric in percent.
    """
    primary = study["primary"]
    lines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
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
