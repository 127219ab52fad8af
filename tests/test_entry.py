"""Help and errors appear before torch is imported, and its environment variables are set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detector import entry
from detector.data.__main__ import HELP, main

ROOT = Path(__file__).resolve().parents[1]

# Runs a script, or a module after -m, and prints at the end whether torch was imported.
WATCHED = """
import atexit, runpy, sys
atexit.register(lambda: print("TORCH" if "torch" in sys.modules else "NO TORCH"))
del sys.argv[0]
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_torch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, and check that it ends without importing torch."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "NO TORCH", done
    return done


@pytest.mark.parametrize("program", ["train.py", "evaluate.py", "predict.py"])
def test_help_of_the_programs(program: str, tmp_path: Path) -> None:
    done = without_torch(tmp_path, str(ROOT / program), "--help")
    first, _, *rest = done.stdout.splitlines()
    assert done.returncode == 0 and first.endswith(".")
    assert sum(f"python {program}" in line for line in rest[:3]) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], *([command] for command in HELP)], ids=["", *HELP])
def test_help_of_the_data_commands(words: list[str], tmp_path: Path) -> None:
    done = without_torch(tmp_path, "-m", "detector.data", *words, "--help")
    assert done.returncode == 0
    command = f"python -m detector.data {words[0] if words else ''}".rstrip()
    assert sum(line.strip().startswith(command) for line in done.stdout.splitlines()) >= 3


@pytest.mark.parametrize(
    "words, message",
    [
        (["shedule.lr=1"], "there is no shedule.lr: did you mean schedule.lr?"),
        (["schedul=1x"], "there is no schedul: did you mean schedule?"),
        (["experiment=aquarium"], "experiment has no default choice to replace: add one with a"),
        (["qwertz=1"], "there is no qwertz: --help lists the keys that exist"),
        (["data.root=x"], "data.root belongs to data=coco and data=voc, which this command does"),
        (["data=cocoo"], "Could not find 'data/cocoo' Available options in 'data': coco shapes"),
        (["data.num_workers=some"], "data.num_workers=some must be auto or at least 0"),
        (["data=voc"], "missing: give data.root=FOLDER"),
        (["+experiment=aquarium"], "data.root=FOLDER: no such folder; give the one with the data"),
        (
            ["data=voc", "data.root=nowhere"],
            "data.root=nowhere: no such folder; give the one with the data",
        ),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path) -> None:
    done = without_torch(tmp_path, str(ROOT / "train.py"), *words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}") or message in line, line


def test_mistakes_of_the_other_programs(tmp_path: Path) -> None:
    done = without_torch(tmp_path, str(ROOT / "predict.py"), "images=x")
    assert "missing: give checkpoint=FILE" in done.stderr and done.returncode == 2
    done = without_torch(tmp_path, str(ROOT / "evaluate.py"), "chekpoint=x")
    assert "there is no chekpoint: did you mean checkpoint?" in done.stderr
    done = without_torch(tmp_path, str(ROOT / "predict.py"), "seed=1", "checkpoint=x", "images=x")
    assert "seed belongs to evaluate.py and train.py" in done.stderr
    done = without_torch(tmp_path, str(ROOT / "train.py"), "decode=true")
    assert "decode belongs to python -m detector.data" in done.stderr
    done = without_torch(tmp_path, str(ROOT / "predict.py"), "deform=none")
    assert "deform belongs to train.py, which this command does not use" in done.stderr
    done = without_torch(tmp_path, "-m", "detector.data", "check", "data=voc")
    assert "missing: give data.root=FOLDER" in done.stderr and done.returncode == 2


def test_results_are_scored_and_compared_without_torch(tmp_path: Path) -> None:
    objects = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"annotations": objects}))
    (tmp_path / "found.json").write_text(json.dumps([objects[0] | {"score": 0.5}]))
    command = [str(ROOT / "evaluate.py"), "detections=found.json", "data.annotations=truth.json"]
    for more in ([], ["metric=voc07"], ["compare_with=found.json"]):
        done = without_torch(tmp_path, *command, *more)
        assert done.returncode == 0 and "100.0" in done.stdout, done
    done = without_torch(tmp_path, *command, "compare_with=truth.json")
    assert done.returncode == 1 and "score" in done.stderr


def test_help_within_the_process(capsys: pytest.CaptureFixture) -> None:
    for arguments in ([], ["-h"], ["sheet", "--help"], ["prepare", "-h"]):
        assert main(arguments) == 0
        assert "python -m detector.data" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_openmp_waiting_is_set_unless_the_user_did(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(entry.os, "environ", environment)
    entry.set_openmp_waiting()
    assert environment == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "4000"}
    environment.clear()
    environment[name] = "the user's"
    entry.set_openmp_waiting()
    assert environment == {name: "the user's"}
