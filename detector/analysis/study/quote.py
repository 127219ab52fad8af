"""Puts what a study says into a markdown file, between two comments, so that neither can go stale.

    python -m detector.analysis.study.quote README.md
    python -m detector.analysis.study.quote README.md docs/*.md
    python -m detector.analysis.study.quote --check README.md

A quote stands between the comments `<!-- study FILE -->` and `<!-- end of study -->`, FILE being a
study.json relative to the markdown file. --check changes nothing, and fails if something would.
"""

import json
import re
import sys
from pathlib import Path

from detector import entry
from detector.analysis.study.report import arms_rows, could_have_seen
from detector.config import ConfigError
from detector.data.check import table

QUOTE = re.compile(r"(<!-- study (\S+) -->\n).*?(<!-- end of study -->)", re.DOTALL)


def quoted(path: Path) -> str:
    """The text of a markdown file with every quote as its study has it now."""

    def fresh(found: re.Match[str]) -> str:
        study = json.loads((path.parent / found[2]).read_text(encoding="utf-8"))
        said = [study["says"], table(*arms_rows(study)), could_have_seen(study)]
        return found[1] + "\n\n".join(part for part in said if part) + "\n" + found[3]

    return QUOTE.sub(fresh, path.read_text(encoding="utf-8"))


def main() -> None:
    """Files, and perhaps --check."""
    check = "--check" in sys.argv[1:]
    paths = [Path(word) for word in sys.argv[1:] if word != "--check"]
    stale = []
    for path in paths:
        text = quoted(path)
        if text != path.read_text(encoding="utf-8"):
            stale.append(str(path))
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        raise ConfigError(f"{', '.join(stale)}: not what the study says; run this without --check")


if __name__ == "__main__":
    entry.show_help(__doc__)
    with entry.one_line_errors():
        main()
