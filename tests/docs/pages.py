"""The pages of the manual, and their code blocks, for the tests in this folder."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ops/README.md")),
        *ROOT.glob("CHANGELOG.md"),
        *ROOT.glob("docs/**/*.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block of a page, and the line before it, which may say that the block is not run."""

    page: str
    line: int
    language: str
    code: str
    before: str


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks() -> list[Block]:
    """Return all code blocks of all pages."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            lines = text[: match.start()].splitlines()
            before = lines[-1] if lines else ""
            found.append(Block(name_of(path), len(lines) + 1, match[1], match[2], before))
    return found


def without_code(text: str) -> str:
    """Return a page's text without code blocks and without code in backticks."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))
