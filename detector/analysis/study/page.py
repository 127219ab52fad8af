"""Writes study.html: one file that works from disk without a network.

Charts are SVG drawn by matplotlib, and tables are those of study.md. The interactive parts are in
`page.js`, which reads the images and feature maps that `explorer.py` collects.
"""

import html
import json
from pathlib import Path
from typing import Any

from detector.analysis.study.page_charts import charts
from detector.analysis.study.report import arms_rows, sections
from detector.analysis.study.sentences import method, power_statement

HERE = Path(__file__).parent
NO_PICTURES = (
    "<p class=note>No arm has a detection with a score of at least 0.5 in these images, "
    "so they are not shown.</p>"
)


def page(study: dict[str, Any], explorer: dict[str, Any] | None) -> str:
    """Return the HTML document.

    Args:
        study: the content of study.json.
        explorer: the data of `page.js`, which `detector/commands/study.py` collects; None
            if there are no checkpoints or no images.
    """
    parts = [
        f"<p class=says>{html.escape(study['says'])}</p>",
        table(*arms_rows(study)),
        f"<p>{html.escape(method(study))}</p>" if study["comparisons"] else "",
        f"<p>{html.escape(power_statement(study))}</p>",
        charts(study),
    ]
    if explorer is not None:
        parts.append("<h2>Images in which the arms differ most</h2>")
        parts.append(_fragment("pictures.html") if has_detections(explorer) else NO_PICTURES)
        parts.append(_fragment("explorer.html"))
    parts += [f"<h2>{html.escape(title)}</h2>{table(*rows)}" for title, rows in sections(study)]
    if study["notes"]:
        listed = "".join(f"<li>{html.escape(note)}</li>" for note in study["notes"])
        parts.append(f"<h2>Notes</h2><ul>{listed}</ul>")
    # Without this, a class or file name that contains </script> would end the script element.
    data = json.dumps(explorer).replace("<", "\\u003c")
    template = _fragment("page.html")
    for mark, content in {
        "@TITLE@": html.escape(f"Study: {study['primary']} of {len(study['arms'])} arms"),
        "@STYLE@": _fragment("page.css"),
        "@SCRIPT@": _fragment("page.js"),
        "@BODY@": "\n".join(part for part in parts if part),
        "@DATA@": data,
    }.items():
        template = template.replace(mark, content)
    return template


def _fragment(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def has_detections(explorer: dict[str, Any]) -> bool:
    """Return whether there is a detection of any arm to draw in any of the images."""
    return any(any(image["found"].values()) for image in explorer["images"])


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in HTML; a wide table scrolls within the page."""

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<div class=wide><table><thead>{line(header, 'th')}</thead>{body}</table></div>"
