"""The runs of a study: found in folders, put into arms by what their sweep varies, or left out with
the reason. An arm is a choice of everything but the seed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from detector import exit_codes
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.entries import EvaluationError
from detector.evaluation.results import read_detections, read_ground_truth
from detector.training.record import read_metrics
from detector.training.resume import FREE, flat

# What makes no arm: beside the seed, where and how talkative a run is. How long it is matters.
ROWS = "ablation/"  # a group of configurations that each set several keys: rows of a table
IRRELEVANT = FREE - {"schedule.epochs", "schedule.patience", "max_skipped_steps"} | {"seed"}


class StudyError(ValueError):
    """There is nothing to study. The message names the folder and what was expected."""

    exit_code = exit_codes.FAILED


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        arm: what tells it from runs of other arms, such as `none` or `c3-c5_v2`.
        config: flat, keys joined by dots.
        summary: its summary.json.
        curve: a dictionary for each evaluation: epoch, step, seconds and the metric's numbers.
        offsets: of the last evaluation, by layer.
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
    """What a study is made of.

    Attributes:
        arms: name -> its runs, by rising seed.
        left_out: a run, as `shown` -> why it has no part in the study.
        metric: coco, voc07 or voc12.
    """

    arms: dict[str, list[Run]]
    left_out: dict[str, str]
    ground_truth: GroundTruth
    metric: str


def read_runs(folders: list[Path]) -> Runs:
    """The runs of sweep folders, or run folders themselves.

    Raises:
        StudyError: there is no finished run with its detections.
    """
    found = [run for folder in folders for run in _folders_of_runs(folder)]
    left_out: dict[str, str] = {}
    for run in found:
        reason = _unfinished(run)
        if reason is not None:
            left_out[shown(run)] = reason
    done = [run for run in dict.fromkeys(found) if shown(run) not in left_out]
    if not done:
        reasons = "; ".join(f"{run}: {why}" for run, why in left_out.items())
        raise StudyError(f"there is no finished run to study: {reasons}")
    configs = {run: _config(run) for run in done}
    arms, varied = _arms({run: _overrides(run) for run in done})
    if len(set(arms.values())) == 1:  # named by what it was meant to be compared with
        arms, varied = _arms({run: _overrides(run) for run in dict.fromkeys(found)})
    truths = {run: (run / "ground_truth.json").read_bytes() for run in done}
    _leave_out_others(left_out, done, lambda run: truths[run], "its validation set is another")
    _leave_out_others(left_out, done, lambda run: configs[run]["metric"], "its metric is another")
    _leave_out_configs(left_out, done, configs, arms, varied)
    kept = _distinct([run for run in done if shown(run) not in left_out], arms, configs, left_out)

    ground_truth = read_ground_truth(kept[0] / "ground_truth.json")
    by_arm: dict[str, list[Run]] = {}
    for run in kept:
        try:
            detections = read_detections(run / "detections.json", ground_truth)
        except EvaluationError as error:
            left_out[shown(run)] = str(error)
            continue
        by_arm.setdefault(arms[run], []).append(_read(run, arms[run], configs[run], detections))
    if not by_arm:
        reasons = "; ".join(f"{run}: {why}" for run, why in left_out.items())
        raise StudyError(f"there is no run to study: {reasons}")
    for runs in by_arm.values():
        runs.sort(key=lambda run: run.seed)
    return Runs(by_arm, left_out, ground_truth, configs[kept[0]]["metric"])


def shown(run: Path) -> str:
    """A run's folder as a study names it: with its sweep's, wherever that is."""
    run = run.absolute()
    return f"{run.parent.name}/{run.name}"


def arms_of(runs: list[Path]) -> dict[Path, str]:
    """The arm that each run folder is of, by what its sweep varies."""
    return _arms({run: _overrides(run) for run in runs})[0]


def _folders_of_runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StudyError(f"{folder}: no such folder; give that of a sweep, such as multirun/DATE")
    if (folder / ".hydra").is_dir():
        return [folder]
    runs = [path.parent for path in folder.glob("*/.hydra")]
    if not runs:
        raise StudyError(
            f"{folder}: there are no runs in it; give the folder of a sweep, such as multirun/DATE"
        )
    return sorted(runs, key=lambda run: (len(run.name), run.name))


def _unfinished(run: Path) -> str | None:
    """Why a run cannot be read, if it cannot."""
    for name in ("config.yaml", "summary.json"):
        if not (run / name).exists():
            return f"it has not finished: there is no {name}"
    summary = json.loads((run / "summary.json").read_text())
    if summary["status"] != "done":
        reason = summary.get("error") or summary.get("signal") or "no reason given"
        return f"it is {summary['status']}, not done: {reason}"
    for name in ("ground_truth.json", "detections.json"):
        if not (run / name).exists():
            return f"there is no {name}, which runs keep since studies read it: run it again"
    return None


def _config(run: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert isinstance(content, dict)
    return flat({str(key): value for key, value in content.items()})


def _overrides(run: Path) -> dict[str, str]:
    """What the command line, or the sweep, gave this run: key -> value."""
    items = OmegaConf.load(run / ".hydra" / "overrides.yaml")
    pairs = (str(item).partition("=")[::2] for item in items)
    named = {key.lstrip("+~"): value for key, value in pairs}
    return {key: value for key, value in named.items() if key not in IRRELEVANT | {"ablation"}}


def _arms(overrides: dict[Path, dict[str, str]]) -> tuple[dict[Path, str], list[str]]:
    """The arm of each run, and the overrides that make arms. One alone needs no key."""
    keys = {key: None for of_run in overrides.values() for key in of_run}
    varied = [key for key in keys if len({of.get(key) for of in overrides.values()}) > 1]
    shown = varied or [key for key in keys if key == "deform"]
    named = {}
    for run, of_run in overrides.items():
        given = [f"{key.removeprefix(ROWS)}={of_run[key]}" for key in shown if key in of_run]
        if len(shown) == 1:
            named[run] = of_run.get(shown[0], f"without {shown[0]}")
        else:
            named[run] = " ".join(given) or "as configured"
    return named, varied


def _leave_out_others(
    left_out: dict[str, str], runs: Iterable[Path], of_run: Callable[[Path], Any], why: str
) -> None:
    """Leave out those that differ from most, of equally many from the first."""
    runs = [run for run in runs if shown(run) not in left_out]
    ((most, _),) = Counter(map(of_run, runs)).most_common(1)
    for run in runs:
        if of_run(run) != most:
            left_out[shown(run)] = f"{why} than that of the other runs"


def _leave_out_configs(
    left_out: dict[str, str],
    done: list[Path],
    configs: dict[Path, dict[str, Any]],
    arms: dict[Path, str],
    varied: list[str],
) -> None:
    """Leave out runs that differ in more than what is varied: between arms in keys that no override
    names, within an arm in any. Where arms are rows of a table, these say what differs.
    """
    runs = [run for run in done if shown(run) not in left_out]
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
                if value != most and shown(run) not in left_out:
                    left_out[shown(run)] = f"it has {key}={value}, the other runs {most}"


def _distinct(
    runs: list[Path],
    arms: dict[Path, str],
    configs: dict[Path, dict[str, Any]],
    left_out: dict[str, str],
) -> list[Path]:
    """Of runs of one arm and seed the first."""
    first: dict[tuple[str, int], Path] = {}
    for run in runs:
        other = first.setdefault((arms[run], configs[run]["seed"]), run)
        if other != run:
            left_out[shown(run)] = f"it has the arm and the seed of {shown(other)}"
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
