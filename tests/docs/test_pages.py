"""Links in the README and the manual have targets, the README stays short, and measured times and
sizes appear only in quotes.
"""

import re
from functools import cache
from pathlib import Path

import pytest
from pages import PAGES, ROOT, name_of, without_code

LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
QUOTED = re.compile(
    r"<!-- quote .*?<!-- end of quote -->|<!-- value .*?<!-- end -->|"
    r"<!-- theirs -->.*?<!-- end of theirs -->",
    re.DOTALL,
)
# A number with a unit that makes it a measurement. Limits, image sizes and counts are not matched.
MEASURED = re.compile(
    r"\b\d[\d.]*(?: to \d[\d.]*)? ?"
    r"(?:ms\b|MiB\b|GiB\b|GB\b|images/s|GFLOP/s|hours?\b|minutes?\b|seconds? (?:a|of)\b|"
    r"s (?:a|an) |times (?:as fast|faster)|points? of AP|AP\b)"
)
MADE_ELSEWHERE = {"docs/scale.md"}  # made by python -m detector.scale
LIMITS = {"30 minutes", "256 MiB"}  # settings that look like measurements


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs build them."""
    found = set()
    fenceless = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for title in re.findall(r"^#+ (.+)$", fenceless, re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", title.lower())
        found.add(re.sub(r" +", "-", text.strip()))
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = without_code(path.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        at = (path.parent / file).resolve() if file else path
        assert at.exists(), target
        assert ROOT in at.parents or at == ROOT, target
        if anchor:
            assert anchor in anchors(at), target


def test_every_page_is_in_the_list() -> None:
    listed = LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    pages = {name_of(path) for path in PAGES if ROOT / "docs" in path.parents}
    there = {f"docs/{link}" for link in listed}
    assert pages - there - {"docs/README.md"} <= MADE_ELSEWHERE


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_was_measured_is_quoted(path: Path) -> None:
    if name_of(path) in MADE_ELSEWHERE:
        return
    text = QUOTED.sub("QUOTED", without_code(path.read_text(encoding="utf-8")))
    assert {found[0] for found in MEASURED.finditer(text)} <= LIMITS


def test_what_counts_as_measured() -> None:
    for text in (
        "takes 26 ms",
        "3.2 GB",
        "2 to 28 times as fast",
        "230 images/s",
        "1.5 s an image",
    ):
        assert MEASURED.search(text), text
    for text in ("512 MB", "800 pixels", "within 0.01 pixel", "batch of 16", "at most eight"):
        assert not MEASURED.search(text), text
    assert not MEASURED.search(QUOTED.sub("", "<!-- value a: b: -->26<!-- end --> ms"))


def test_readme_is_a_front_door() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    text = re.sub(r"(?s)<!-- quote .*?<!-- end of quote -->", "", "\n".join(lines))
    read = [COMMENT.sub("", line) for line in text.splitlines() if not line.startswith("|")]
    assert max(map(len, read)) <= 110


def test_anchors_of_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What is `this`, at *9³*?\n```\n# no heading\n```\n## A, b\n")
    assert anchors(page) == {"what-is-this-at-9³", "a-b"}
