"""The script for a new GPU, with stand-ins for the programs that it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_passes

SCRIPT = Path(__file__).with_name("gpu_check.sh")
STEPS = [
    *("operators", "tests", "memcheck", "racecheck"),
    *("operator-benchmark", "roi-benchmark", "training-step-benchmark", "training"),
    "evaluation",
]


def check(folder: Path, python: str, sanitizer: str = "exit 0") -> subprocess.CompletedProcess[str]:
    """Run the script; the shell lines stand in for python and for compute-sanitizer."""
    programs = folder / "bin"
    programs.mkdir()
    find = 'if [ "$1" = -c ]; then echo "NVIDIA Test;9.0"; exit; fi'
    for name, lines in (("python", f"{find}\n{python}"), ("compute-sanitizer", sanitizer)):
        program(programs / name, f'echo "$@" >> {folder}/calls\n{lines}')
    return subprocess.run(
        ["bash", str(SCRIPT), str(folder / "out")],
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def program(path: Path, lines: str) -> None:
    """Write a shell script that can be executed."""
    path.write_text(f"#!/bin/bash\n{lines}\n")
    path.chmod(0o755)


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the verdict of each step, by its name."""
    return {line[:28].strip(): line[29:37].strip() for line in done.stdout.splitlines()[1:]}


def test_every_step_has_a_verdict(tmp_path: Path) -> None:
    done = check(tmp_path, 'echo "AP 59.6"')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NVIDIA Test, compute capability 9.0")
    assert verdicts(done) == dict.fromkeys(STEPS, "ok")
    assert done.stdout.splitlines()[-1].endswith("AP 59.6")
    assert "pip" not in (tmp_path / "calls").read_text()  # the library fits: nothing is built


def test_the_speeds_of_both_evaluations_are_printed(tmp_path: Path) -> None:
    # One image takes 8 + 2 ms one by one, and 1.5 + 0.5 ms in batches of eight.
    python = f"""
        [ "$1" = - ] && exec {sys.executable} "$@"
        [ "$1" = evaluate.py ] || exit 0
        for word; do declare "${{word%%=*}}=${{word#*=}}" 2> /dev/null || folder=${{word#*=}}; done
        times='"forward_ms": 8, "post_ms": 2'
        [ $eval_batch_size = 8 ] && times='"forward_ms": 1.5, "post_ms": 0.5'
        mkdir -p "$folder"
        echo '{{"metrics": {{"AP": 0.596}}, "timing": {{'$times'}}}}' > "$folder/metrics.json"
    """
    done = check(tmp_path, python)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].endswith(
        "batches of 1: 100 images/s, AP 59.600; batches of 8: 500 images/s, AP 59.600"
    )


def test_an_evaluation_that_fails_is_told(tmp_path: Path) -> None:
    done = check(tmp_path, '[ "$1" = evaluate.py ] && echo "no checkpoint" && exit 1; exit 0')
    assert done.returncode == 1 and verdicts(done)["evaluation"] == "FAILED"
    assert done.stdout.splitlines()[-1].endswith("no checkpoint")


def test_a_step_that_fails_does_not_end_the_check(tmp_path: Path) -> None:
    done = check(tmp_path, "exit 0", sanitizer='echo "1 error"; exit 1')
    assert done.returncode == 1
    assert verdicts(done)["memcheck"] == verdicts(done)["racecheck"] == "FAILED"
    assert verdicts(done)["training"] == "ok" and "1 error" in done.stdout


def test_a_library_for_other_gpus_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path / "built"
    program(
        tmp_path / "pip", f'echo "pip $TORCH_CUDA_ARCH_LIST" >> {tmp_path}/calls; touch {built}'
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = check(tmp_path, f'[ "$2" = ops ] && [ ! -e {built} ] && exit 1; exit 0')
    assert done.returncode == 0 and verdicts(done) == dict.fromkeys(["build", *STEPS], "ok")
    assert "pip 9.0" in (tmp_path / "calls").read_text()


def test_a_library_that_cannot_be_built_ends_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "pip", "echo no compiler; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = check(tmp_path, "exit 1")
    assert done.returncode == 1
    assert verdicts(done) == {"build": "FAILED", "operators": "FAILED"}
    assert "no compiler" in done.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    program(tmp_path / "python", "exit 1")
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no GPU here" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_passes_for_the_sanitizers_run() -> None:
    small_passes.main("cpu")
