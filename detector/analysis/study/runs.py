"""Reads the runs of a study from folders, and leaves out those that cannot be compared.

The runs of an arm differ in nothing but the seed. Each run that is left out has a reason.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from detector import exit_codes
from detector.analysis.study.arms import IRRELEVANT, ROWS, arms_by_overrides, overrides_of
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.entries import EvaluationError
from detector.evaluation.results import read_detections, read_ground_truth
from detector.training.record import read_metrics
from detector.training.resume import flat


class StudyError(ValueError):
    """The study cannot be made. The message names the culprit and says what was expected."""

    exit_code = exit_codes.FAILED


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        arm: the name of its arm, such as `none` or `c3-c5_v2`.
        config: its configuration as one flat dictionary, with keys joined by dots.
        summary: the content of its summary.json.
        detections: the detections of its last evaluation.
        curve: a dictionary for each evaluation: epoch, step, seconds and the metric's numbers.
        offsets: layer -> the lengths of its offsets in the last evaluation.
    """

    folder: Path
    arm: str
    seed: int
    config: dict[str, Any]
    summary: dict[str, Any]
    detections: Detections
    curve: list[dict[str, Any]]
    offsets: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Runs:
    """The runs that a study compares.

    Attributes:
        arms: name of an arm -> its runs, by rising seed.
        left_out: name of a run, as `run_name` returns it -> why it is left out of the study.
        ground_truth: the validation set of all runs.
        metric: coco, voc07 or voc12.
    """

    arms: dict[str, list[Run]]
    left_out: dict[str, str]
    ground_truth: GroundTruth
    metric: str


def read_runs(folders: list[Path]) -> Runs:
    """Read the runs in some folders, each of which is the folder of a sweep or of a single run.

    Raises:
        StudyError: a folder does not exist or has no runs, or there is no finished run with its
            detections.
    """
    found = [run for folder in folders for run in _folders_of_runs(folder)]
    left_out: dict[str, str] = {}
    for run in found:
        reason = _unfinished(run)
        if reason is not None:
            left_out[run_name(run)] = reason
    done = [run for run in dict.fromkeys(found) if run_name(run) not in left_out]
    if not done:
        reasons = "; ".join(f"{run}: {why}" for run, why in left_out.items())
        raise StudyError(f"there is no finished run to study: {reasons}")
    configs = {run: _config(run) for run in done}
    arms, varied = arms_by_overrides({run: overrides_of(run) for run in done})
    if len(set(arms.values())) == 1:  # then the unfinished runs say what the sweep varies
        arms, varied = arms_by_overrides({run: overrides_of(run) for run in dict.fromkeys(found)})
    truths = {run: (run / "ground_truth.json").read_bytes() for run in done}
    _leave_out_others(left_out, done, lambda run: truths[run], "its validation set")
    _leave_out_others(left_out, done, lambda run: configs[run]["metric"], "its metric")
    _leave_out_configs(left_out, done, configs, arms, varied)
    kept = _distinct(
        [run for run in done if run_name(run) not in left_out], arms, configs, left_out
    )

    ground_truth = read_ground_truth(kept[0] / "ground_truth.json")
    by_arm: dict[str, list[Run]] = {}
    for run in kept:
        try:
            detections = read_detections(run / "detections.json", ground_truth)
        except EvaluationError as error:
            left_out[run_name(run)] = str(error)
            continue
        by_arm.setdefault(arms[run], []).append(_read(run, arms[run], configs[run], detections))
    if not by_arm:
        reasons = "; ".join(f"{run}: {why}" for run, why in left_out.items())
        raise StudyError(f"there is no run to study: {reasons}")
    for runs in by_arm.values():
        runs.sort(key=lambda run: run.seed)
    return Runs(by_arm, left_out, ground_truth, configs[kept[0]]["metric"])


def run_name(run: Path) -> str:
    """Return a run's name in a study: the name of its sweep's folder, and that of its own."""
    run = run.absolute()
    return f"{run.parent.name}/{run.name}"


def _folders_of_runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StudyError(
            f"{folder}: no such folder; give the folder of a sweep, such as multirun/DATE"
        )
    if (folder / ".hydra").is_dir():
        return [folder]
    runs = [path.parent for path in folder.glob("*/.hydra")]
    if not runs:
        raise StudyError(
            f"{folder}: there are no runs in it; give the folder of a sweep, such as multirun/DATE"
        )
    return sorted(runs, key=lambda run: (len(run.name), run.name))


def _unfinished(run: Path) -> str | None:
    """Return why a run cannot be part of a study, or None if it can."""
    if not (run / "summary.json").exists():
        return "it has not finished: there is no summary.json"
    summary = json.loads((run / "summary.json").read_text())
    if summary["status"] != "done":
        reason = summary.get("error") or summary.get("signal") or "no reason given"
        return f"its status is {summary['status']}, not done: {reason}"
    if not (run / "config.yaml").exists():
        return "it has not finished: there is no config.yaml"
    for name in ("ground_truth.json", "detections.json"):
        if not (run / name).exists():
            return f"there is no {name}, which older versions did not write: train the run again"
    return None


def _config(run: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert isinstance(content, dict)
    return flat({str(key): value for key, value in content.items()})


def _leave_out_others(
    left_out: dict[str, str], runs: Iterable[Path], of_run: Callable[[Path], Any], what: str
) -> None:
    """Leave out the runs that differ from the majority in one value; the first value wins a tie."""
    runs = [run for run in runs if run_name(run) not in left_out]
    ((most, _),) = Counter(map(of_run, runs)).most_common(1)
    for run in runs:
        if of_run(run) != most:
            left_out[run_name(run)] = f"{what} differs from that of the other runs"


def _leave_out_configs(
    left_out: dict[str, str],
    done: list[Path],
    configs: dict[Path, dict[str, Any]],
    arms: dict[Path, str],
    varied: list[str],
) -> None:
    """Leave out the runs whose configuration differs in more than what the sweep varies.

    Keys that the sweep varies may differ between arms, and all other keys must be equal in all
    runs. Within an arm, all keys must be equal. If arms are rows of a table, whose files set any
    keys, only runs of the same arm are compared. The value of the majority is the right one.
    """
    runs = [run for run in done if run_name(run) not in left_out]
    keys = sorted({key for run in runs for key in configs[run]} - IRRELEVANT)
    are_rows = any(name.startswith(ROWS) for name in varied)
    for key in keys:
        is_varied = are_rows or any(key == name or key.startswith(f"{name}.") for name in varied)
        groups = {arms[run] for run in runs} if is_varied else {None}
        for group in groups:
            members = [run for run in runs if group is None or arms[run] == group]
            values = [repr(configs[run].get(key)) for run in members]
            ((most, _),) = Counter(values).most_common(1)
            for run, value in zip(members, values, strict=True):
                if value != most and run_name(run) not in left_out:
                    left_out[run_name(run)] = f"it has {key}={value}, the other runs {most}"


def _distinct(
    runs: list[Path],
    arms: dict[Path, str],
    configs: dict[Path, dict[str, Any]],
    left_out: dict[str, str],
) -> list[Path]:
    """Keep the first run of each arm and seed."""
    first: dict[tuple[str, int], Path] = {}
    for run in runs:
        other = first.setdefault((arms[run], configs[run]["seed"]), run)
        if other != run:
            left_out[run_name(run)] = f"it has the arm and the seed of {run_name(other)}"
    return list(first.values())


def _read(run: Path, arm: str, config: dict[str, Any], detections: Detections) -> Run:
    lines = read_metrics(run / "metrics.jsonl")
    offsets = [line["layers"] for line in lines if line["kind"] == "offsets"]
    return Run(
        folder=run,
        arm=arm,
        seed=config["seed"],
        config=config,
        summary=json.loads((run / "summary.json").read_text()),
        detections=detections,
        curve=[line for line in lines if line["kind"] == "val"],
        offsets=offsets[-1] if offsets else {},
    )
