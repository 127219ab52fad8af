"""What the command that splits errors writes, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
from error_cases import DOG, box, truth_of
from PIL import Image

from detector import entry
from detector.analysis.errors import __main__ as errors


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    truth = truth_of(box(0), box(1000, DOG))
    truth["categories"][0]["name"] = "dog|wolf"
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([box(0, score=0.9), box(0, DOG, score=0.8)]))
    return [
        f"detections={tmp_path / 'found.json'}",
        f"annotations={tmp_path / 'gt.json'}",
        f"output={tmp_path / 'new' / 'report'}",
    ]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["errors.py", *arguments])
    try:
        entry.run(errors.main)
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_report(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command(monkeypatch, *files) == 0
    folder = tmp_path / "new" / "report"
    tables = (folder / "errors.md").read_text()
    assert capsys.readouterr().out == tables
    lines = tables.splitlines()
    # The dog detection lies on the cat, which is found already.
    assert lines[0] == "AP50 50.0"
    assert "| classification | 1 | 0.0 |" in lines and "| missed | 1 | 50.0 |" in lines
    assert "| dog\\|wolf | 0 | 0 | 1 |" in lines and "| background | 0 | 1 | 0 |" in lines
    content = json.loads((folder / "errors.json").read_text())
    assert content["AP50"] == pytest.approx(0.5)
    assert content["errors"]["missed"] == {"count": 1, "gain": pytest.approx(0.5)}
    assert content["confusion"]["counts"] == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert content["curves"]["cat"] == pytest.approx([1] * 101)
    events = EventAccumulator(str(folder))
    events.Reload()
    names = {"precision_recall", "confusion", "errors"}
    assert set(events.Tags()["images"]) == names
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize(
    "change, code, culprit",
    [
        ("detections=nowhere.json", 1, "nowhere.json"),
        ("iou=0", 2, "iou=0"),
        ("iou=much", 2, "iou"),
        ("nonsense=1", 2, "nonsense"),
    ],
)
def test_errors_are_one_line(
    change: str,
    code: int,
    culprit: str,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert command(monkeypatch, *files, change) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert culprit in line
    assert command(monkeypatch, *files[:2]) == 2
    assert "output" in capsys.readouterr().err
    assert command(monkeypatch, *files[:2], "output=/dev/null/x") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/dev/null/x" in line
