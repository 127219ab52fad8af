"""Quotes in markdown pages: the tables of each kind of file, single values, and errors."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from detector.config import ConfigError
from detector.quote import __main__ as command
from detector.quote import pages, tables

ROOT = Path(__file__).resolve().parents[1]
TIMES = [
    {"name": "a", "threads": 1, "ms": 4.0},
    {"name": "a", "threads": 2, "ms": 2.5},
    {"name": "b", "threads": 1, "ms": 9.0},
]
MACHINE = {
    "processor": "Intel(R) Xeon(R) Processor",
    "flags": ["avx2", "amx_bf16"],
    "cores": 2,
    "gpu": None,
    "versions": {"torch": "2.14.1"},
    "date": "2026-12-01",
}


def page(folder: Path, text: str, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    path = folder / "page.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "path, form, expected",
    [
        ("times/0/ms", ".1f", "4.0"),
        ("times/name=a,threads=2/ms", ".2f", "2.50"),
        ("times/name=a/ms", "least .1f", "2.5"),
        ("times/*/ms", "most .0f", "9"),
        ("times/name!=b,threads=2/ms", ".1f", "2.5"),
        ("times/name=b/ms", "100 * .0f", "900"),
        ("times/name=a/ms", "most 10 * .0f", "40"),
        ("what", "", "a thing"),
    ],
)
def test_a_value_in_a_sentence(tmp_path: Path, path: str, form: str, expected: str) -> None:
    text = f"It takes <!-- value a.json: {path}: {form} -->old<!-- end --> ms.\n"
    path_ = page(tmp_path, text, a={"times": TIMES, "what": "a thing"})
    assert pages.quoted(path_) == text.replace("old", expected)


def test_a_quote_is_replaced_and_then_stays(tmp_path: Path) -> None:
    one = {
        "what": "what it is",
        "device": "here",
        "date": "today",
        "header": ["a"],
        "rows": [["1"]],
    }
    text = "before\n<!-- quote noted a.json mine -->\nold\n<!-- end of quote -->\nafter\n"
    path = page(tmp_path, text, a={"mine": one})
    text = pages.quoted(path)
    assert text.startswith("before\n") and text.endswith("<!-- end of quote -->\nafter\n")
    assert "What it is; here, today.\n\n| a |\n| --- |\n| 1 |\n" in text and "old" not in text
    path.write_text(text)
    assert pages.quoted(path) == text


def test_code_is_left_alone(tmp_path: Path) -> None:
    text = "```\n<!-- quote noted no.json x -->\n<!-- end of quote -->\n```\n"
    text += "and `<!-- value no.json: a: b -->c<!-- end -->`\n"
    assert pages.quoted(page(tmp_path, text)) == text


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a <!-- value no.json: a: -->1<!-- end -->", "no.json: No such file"),
        ("a <!-- value a.json: b: -->1<!-- end -->", "KeyError 'b'"),
        ("a <!-- value a.json: times/*/ms: .1f -->1<!-- end -->", "leads to 3 values"),
        ("a <!-- value a.json: times/name=c/ms: .1f -->1<!-- end -->", "leads to 0 values"),
        ("<!-- value a.json: times/0/ms: .1f -->1<!-- end -->", "must not begin"),
        (
            "<!-- quote gone a.json -->\n<!-- end of quote -->",
            "gone must be one of study, operator",
        ),
    ],
)
def test_errors_name_the_page_and_the_line(tmp_path: Path, text: str, reason: str) -> None:
    path = page(tmp_path, f"\n{text}\n", a={"times": TIMES})
    with pytest.raises(ConfigError, match=f"page.md, line 2: .*{re.escape(reason)}"):
        pages.quoted(path)


def test_machines_and_medians_in_words() -> None:
    content = {
        "machine": MACHINE,
        "seconds": {
            "as here, 0 neighbours": [[1.0, 2.0], [3.0, 6.0]],
            "as here, 1 neighbours": [[4.0], [5.0], [6.0]],
        },
    }
    said = "medians of 2 interleaved rounds, 2 cores of an Intel Xeon (AVX2, AMX), torch 2.14.1"
    text = tables.neighbours(content)
    assert said[1:] in text and "| as here | 2.50 | 5.00 |" in text


def test_times_beside_torchvision() -> None:
    both = {"problem": "C8@2x3 N1", "threads": 1, "spread": 0.1}
    times = [
        both | {"pass": pass_, "candidate": f"{name} float32", "ms": ms} | {FASTER: 250 / ms}
        for pass_ in ("forward", "forward+backward")
        for name, ms in (("ours", 13.0), ("torchvision", 250.4))
    ]
    lines = tables.operator({"machine": MACHINE, "rounds": 3, "times": times}).splitlines()
    assert lines[-1] == "| C8, 2x3 | 1 | f + b | 13.0 (19.2) | - | 250 | - | - | - |"
    assert "at most 5 % of a median" in lines[0]


FASTER = "times faster than torchvision"


def test_check_fails_where_something_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a <!-- value a.json: times/0/ms: .0f -->5<!-- end -->\n"
    path = page(tmp_path, text, a={"times": TIMES})
    monkeypatch.setattr(sys, "argv", ["quote", "--check", str(path)])
    with pytest.raises(ConfigError, match="page.md: figures are out of date"):
        command.main()
    assert path.read_text() == text
    monkeypatch.setattr(sys, "argv", ["quote", str(path)])
    command.main()
    assert path.read_text() == text.replace("5", "4")


@pytest.mark.parametrize(
    "kind, name, said",
    [
        ("study", "results/study/study.json", "| c3-c5_v2 |"),
        ("operator", "ops/results/cpu-amd-epyc-2cores.json", "| C512, 25x38 | 2 | f + b |"),
        ("operator_means", "ops/results/cpu-amd-epyc-2cores.json", "| bfloat16, forward |"),
        ("roi", "ops/results/roi-cpu-xeon-amx-2cores.json", "ours, deformable"),
        ("step", "results/step/detector-cpu-xeon-amx-2cores.json", "| ours, `deform=none` |"),
        ("neighbours", "results/step/neighbours.json", "beside two"),
        ("medians", "results/step/workers.json", "| 2 workers |"),
        ("simulation", "results/study/simulation.json", "| skewed images | 10 | 6 |"),
    ],
)
def test_the_committed_files_can_be_quoted(kind: str, name: str, said: str) -> None:
    assert said in getattr(tables, kind)(json.loads((ROOT / name).read_text()))


def test_evaluation_beside_other_libraries() -> None:
    one = {"seconds": 2.0, "range": [1.5, 2.5], "MiB": 300.0, "distance": 0.0, "numbers": []}
    sizes = {"images": 5, "classes": 2, "objects": 9, "detections": 20, "rounds": 3}
    text = tables.evaluation({"machine": MACHINE, "candidates": {"ours": one}} | sizes)
    assert "5 images, 2 classes, 9 objects and 20 detections" in text and "| ours | 2.0 |" in text


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")]))
def test_quotes_are_fresh(path: Path) -> None:
    assert pages.quoted(path) == path.read_text(encoding="utf-8")
