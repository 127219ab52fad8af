"""Copies figures from committed JSON files into markdown pages, so that every page states what was
measured.

    python -m detector.quote README.md docs/*.md
    python -m detector.quote --check README.md docs/*.md

A quote is a table or a few lines between two comments, each on its own line:

    <!-- quote operator ../ops/results/cpu.json -->
    <!-- end of quote -->

The file name is relative to the markdown page. The word after `quote` says what to write:

    study           the verdict of a study, its arms, and the smallest difference it could detect
    operator        the operator's times, compared with other implementations
    operator-means  the geometric means of these comparisons
    roi             the times of RoI pooling
    step            the time and memory of a training step
    neighbours      the time of a training step beside busy processes
    medians         any other comparison of detector.settings_benchmark
    evaluation      the time and memory of COCO evaluation, compared with other libraries
    simulation      the coverage of the confidence intervals
    noted NAME      a table that was copied by hand from the output of a command

A single value stands within a sentence:

    at least <!-- value cpu.json: summary/threads=2/times conv2d: least .1f -->1.1<!-- end --> times

Its three parts are a file, a path and a format. The path is a list of keys with slashes between
them. In a list, `key=value,key!=value` selects the entries that satisfy all conditions, a whole
number is an index from 0, and `*` selects all entries. The format is a format specification of
Python. `least` or `most` before it takes the smallest or largest of several selected values, and
`100 *` multiplies the value. A line must not begin with such a comment, because markdown would take
it for a paragraph of HTML. Code, in a fence or in backticks, is not changed. --check changes no
file, and fails if a page is out of date.
"""

import sys
from pathlib import Path

from detector import entry
from detector.config import ConfigError
from detector.quote.pages import quoted


def main() -> None:
    """Update the markdown files of the command line or, with --check, verify them."""
    check = "--check" in sys.argv[1:]
    paths = [Path(word) for word in sys.argv[1:] if word != "--check"]
    if not paths:
        raise ConfigError("give the markdown files, such as README.md docs/*.md")
    stale = []
    for path in paths:
        text = quoted(path)
        if text != path.read_text(encoding="utf-8"):
            stale.append(str(path))
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        raise ConfigError(f"{', '.join(stale)}: figures are out of date; run this without --check")


if __name__ == "__main__":
    entry.show_help(__doc__)
    with entry.one_line_errors():
        main()
