"""docs/troubleshooting.md agrees with the source: every error that ends a command is on the page,
and every message on the page is in the source.

In a message `…` stands for names and numbers, and matches anything.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = sorted([*ROOT.glob("detector/**/*.py"), *ROOT.glob("ops/*.py"), *ROOT.glob("*.py")])
USERS = re.compile(
    r"(Config|Dataset|Weights|Checkpoint|Evaluation|Study|Export|Loading|MemoryExceeded|NonFinite|"
    r"Workers|Build|Import)Error|file_error"
)
BOUND = 8  # messages with fewer letters need not be on the page
LEAST = 5  # letters that a message on the page must have


def text_of(node: ast.AST) -> str | None:
    """Return the text of a string or f-string of the source, with … for each replacement field."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
        return "".join(map(str, parts))
    return None


def raised(tree: ast.AST) -> Iterator[str]:
    """Yield the messages of the errors for users that a file raises."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        name = ast.unparse(node.exc.func).rpartition(".")[2]
        if not USERS.fullmatch(name) or not node.exc.args:
            continue
        said = text_of(node.exc.args[-1 if name == "file_error" else 0])
        if said is not None:
            yield f"…: {said}" if name == "file_error" else said


@cache
def trees() -> dict[Path, ast.AST]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


@cache
def on_the_page() -> tuple[str, ...]:
    """Return the messages on the page, which are in backticks in the first column."""
    text = PAGE.read_text(encoding="utf-8")
    return tuple(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))


def letters(message: str) -> int:
    return len(re.findall(r"[a-zA-Z]", message))


def covers(pattern: str, message: str) -> bool:
    """Return whether a message on the page matches a message of the source."""
    expression = ".*".join(re.escape(part) for part in pattern.split("…"))
    return re.fullmatch(expression, message) is not None


def test_every_error_of_a_user_is_on_the_page() -> None:
    messages = {said for tree in trees().values() for said in raised(tree)}
    assert len(messages) > 150
    missing = [
        said
        for said in sorted(messages)
        if letters(said) >= BOUND and not any(covers(pattern, said) for pattern in on_the_page())
    ]
    assert not missing


@cache
def said_in_files() -> tuple[str, ...]:
    """Return all strings of each source file, joined."""
    return tuple("\n".join(filter(None, map(text_of, ast.walk(tree)))) for tree in trees().values())


@pytest.mark.parametrize("pattern", on_the_page())
def test_every_message_of_the_page_is_in_the_source(pattern: str) -> None:
    assert letters(pattern) >= LEAST
    fragments = [part.strip(": ") for part in pattern.split("…") if letters(part) >= 2]
    assert any(all(part in said for part in fragments) for said in said_in_files()), fragments


def test_what_is_compared() -> None:
    assert covers("… must be one of …", "device=… must be one of a, b")
    assert not covers("… must be one of …", "device=… must be in a, b")
    tree = ast.parse("raise ConfigError(f'a {b:.3f} c' f' {d}')\nraise file_error(p, 'x')")
    assert list(raised(tree)) == ["a … c …", "…: x"]
