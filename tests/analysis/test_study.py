"""Studies of run folders, and the three files that they write."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from run_folders import detections_of, truth, write_run

from detector import entry
from detector.analysis.errors.diagnosis import KINDS
from detector.analysis.errors.gains import error_split
from detector.analysis.study import __main__ as command
from detector.analysis.study.arms import arms_of
from detector.analysis.study.run_metrics import run_metrics
from detector.analysis.study.runs import StudyError, read_runs
from detector.analysis.study.sentences import headline, power_statement
from detector.commands import study as studying
from detector.evaluation.coco import coco_metrics
from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.resampling import draw_images


def study_of(*folders: Path, output: Path, **options) -> dict:
    studying.write(list(folders), output, num_resamples=50, **options)
    assert "<html" in (output / "study.html").read_text()
    return json.loads((output / "study.json").read_text())


def test_numbers_are_those_of_the_metrics() -> None:
    """AP by size and class is that of `coco_metrics`, and the gains are those of `error_split`."""
    ground_truth = truth()
    detections = detections_of(ground_truth, 5)
    expected, split = coco_metrics(ground_truth, detections), error_split(ground_truth, detections)
    counts = draw_images(30, 40, np.random.default_rng(0))
    found = run_metrics("coco", as_ground_truth(ground_truth), as_detections(detections), counts)
    assert list(found)[0] == "AP" and found["AP"].shape == (41,)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert found[name][0] == pytest.approx(expected.summary[name], abs=1e-12), name
    for name, of_class in expected.per_class.items():
        assert found[f"class {name}"][0] == pytest.approx(of_class["AP"], abs=1e-12)
    for kind in KINDS:
        assert found[f"error {kind}"][0] == pytest.approx(split.gains[kind], abs=1e-12)
    assert np.nanstd(found["AP"][1:]) > 0


@pytest.mark.parametrize("best, says_nothing", [(0.0099, True), (0.0101, False)])
def test_arms_that_learned_nothing_are_not_compared(best: float, says_nothing: bool) -> None:
    """If no arm reaches one point of AP, the study does not compare them, however narrow the
    confidence intervals are.
    """
    difference = {"value": 0.0, "low": -0.001, "high": 0.001}
    content = {
        "primary": "AP",
        "baseline": "none",
        "arms": [{"numbers": {"AP": {"mean": mean}}} for mean in (0.002, best)],
        "comparisons": [
            {"arm": "c5_v2", "verdict": "no difference shown", "differences": {"AP": difference}}
        ],
        "could_have_seen": {"difference": 0.001, "num_seeds": 2, "seeds_to_halve_it": 10},
    }
    says = headline(content)
    assert says.startswith("No arm detects anything yet") == says_nothing
    assert ("c5_v2 against none" in says) == ("two seeds per arm" in says) == (not says_nothing)
    assert (power_statement(content) == "") == says_nothing


@pytest.mark.parametrize(
    "num_seeds, halve, expected",
    [
        (5, 16, "; 16 seeds per arm would halve that difference."),
        (5, None, "; more seeds would not halve that difference, as there are too few images."),
        (1, None, "with a probability of 80 %."),  # nothing is known of more seeds
    ],
)
def test_the_power_statement(num_seeds: int, halve: int | None, expected: str) -> None:
    content = {
        "primary": "AP",
        "arms": [{"numbers": {"AP": {"mean": 0.5}}}],
        "could_have_seen": {
            "difference": 0.0593,
            "num_seeds": num_seeds,
            "seeds_to_halve_it": halve,
        },
    }
    said = power_statement(content)
    assert "a true difference of 5.9 AP would have been found with a probability of 80 %" in said
    assert said.endswith(expected)


def test_degraded_detections_are_found(sweep: Path, tmp_path: Path) -> None:
    study = study_of(sweep, output=tmp_path)
    (one,) = study["comparisons"]
    assert study["baseline"] == "none" and one["arm"] == "c5_v2" and one["verdict"] == "worse"
    difference = one["differences"]["AP"]
    assert difference["high"] < -0.2 and difference["covers"] == "images and seeds"
    arms = {arm["arm"]: arm["numbers"]["AP"] for arm in study["arms"]}
    for seed in range(3):
        file = json.loads((sweep / str(seed) / "detections.json").read_text())
        expected = coco_metrics(truth(), file).summary["AP"]
        assert arms["none"]["seeds"][str(seed)] == pytest.approx(expected, abs=1e-12)
    assert arms["none"]["mean"] == pytest.approx(np.mean(list(arms["none"]["seeds"].values())))
    assert one["differences"]["error missed"]["low"] > 0
    report = (tmp_path / "study.md").read_text()
    assert "c5_v2 against none: worse" in report and "## By class" in report
    assert (
        study_of(sweep, output=tmp_path / "again", baseline="c5_v2")["comparisons"][0]["verdict"]
        == "better"
    )


def test_copies_do_not_differ(sweep: Path, tmp_path: Path) -> None:
    for seed in range(3):
        file = json.loads((sweep / str(seed) / "detections.json").read_text())
        shutil.rmtree(sweep / str(3 + seed))
        write_run(sweep / str(3 + seed), "deform=other", f"seed={seed}", detections=file)
    study = study_of(sweep, output=tmp_path)
    (one,) = study["comparisons"]
    assert one["verdict"] == "no difference shown"
    difference = one["differences"]["AP"]
    assert difference["value"] == 0 and difference["low"] <= 0 <= difference["high"]


def test_the_same_runs_give_the_same_files(sweep: Path, tmp_path: Path) -> None:
    study_of(sweep, output=tmp_path / "first")
    study_of(sweep, output=tmp_path / "second")
    for name in ("study.json", "study.md", "study.html"):
        first, second = ((tmp_path / of / name).read_bytes() for of in ("first", "second"))
        assert first == second


def test_single_seeds_have_no_verdict(sweep: Path, tmp_path: Path) -> None:
    for run in (1, 2, 4, 5):
        shutil.rmtree(sweep / str(run))
    study = study_of(sweep, output=tmp_path)
    assert study["says"].startswith("One seed per arm")
    (one,) = study["comparisons"]
    assert one["verdict"] == "no difference shown" and study["could_have_seen"] is None
    assert one["differences"]["AP"]["covers"] == "images"


def test_a_study_of_a_single_arm(sweep: Path, tmp_path: Path) -> None:
    for run in (3, 4, 5):
        shutil.rmtree(sweep / str(run))
    study = study_of(sweep, output=tmp_path)
    assert study["says"] == "One arm, none: there is nothing to compare it with."
    assert study["comparisons"] == []


def test_what_is_left_out_is_named(sweep: Path, tmp_path: Path) -> None:
    """Runs that are left out do not change the comparisons."""
    good = study_of(sweep, output=tmp_path / "good")
    write_run(sweep / "6", "deform=none", "seed=3", summary={"status": "failed", "error": "Boom"})
    stopped = {"status": "preempted", "signal": "USR1"}
    write_run(sweep / "7", "deform=none", "seed=4", summary=stopped)
    write_run(sweep / "8", "deform=none", "seed=5", config={"schedule": {"lr": 9, "epochs": 2}})
    write_run(sweep / "9", "deform=none", "seed=6", ground_truth=truth(29))
    write_run(sweep / "10", "deform=none", "seed=7")
    (sweep / "10" / "detections.json").unlink()
    write_run(sweep / "11", "deform=none", "seed=0")
    write_run(sweep / "12", "deform=none", "seed=8", detections=[{"image_id": 1}])
    write_run(sweep / "13", "deform=none", "seed=9")
    (sweep / "13" / "summary.json").unlink()
    # Runs on different devices can be compared.
    write_run(sweep / "14", "deform=none", "seed=10", config={"device": "cuda"})
    study = study_of(sweep, output=tmp_path / "all")
    reasons = {Path(run).name: why for run, why in study["left_out"].items()}
    for run, words in {
        "6": "its status is failed, not done: Boom",
        "7": "preempted",
        "8": "it has schedule.lr=9, the other runs 0.1",
        "9": "its validation set differs from that of the other runs",
        "10": "there is no detections.json",
        "11": "the arm and the seed of",
        "12": "key 'category_id' is missing",
        "13": "there is no summary.json",
    }.items():
        assert words in reasons.pop(run), run
    assert not reasons
    assert "Left out: " in (tmp_path / "all" / "study.md").read_text()
    shutil.rmtree(sweep / "14")
    without = study_of(sweep, output=tmp_path / "all")
    assert without["comparisons"] == good["comparisons"]


def test_several_sweeps(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for seed in (3, 4):
        write_run(other / str(seed), "deform=none", f"seed={seed}")
    study = study_of(sweep, other, output=tmp_path)
    seeds = {arm["arm"]: list(arm["runs"]) for arm in study["arms"]}
    assert seeds == {"none": ["0", "1", "2", "3", "4"], "c5_v2": ["0", "1", "2"]}
    assert any("different seeds" in note for note in study["notes"])


def test_arms_of_several_keys(tmp_path: Path) -> None:
    for number, (deform, lr) in enumerate([("none", 1), ("none", 2), ("c5", 1), ("c5", 2)]):
        config = {"schedule": {"lr": lr, "epochs": 2}}
        overrides = [f"deform={deform}", f"schedule.lr={lr}", "log_every=3"]
        write_run(tmp_path / str(number), *overrides, config=config)
    assert list(read_runs([tmp_path]).arms) == [
        "deform=none schedule.lr=1",
        "deform=none schedule.lr=2",
        "deform=c5 schedule.lr=1",
        "deform=c5 schedule.lr=2",
    ]


def test_arms_that_are_rows_of_a_table(tmp_path: Path) -> None:
    """A row sets several keys, as in configs/ablation/paper_table3/; all runs of a row must have
    equal values.
    """
    rows = {"plain": ("none", 2), "dilated": ("none", 4), "both": ("c5", 2)}
    for seed in (0, 1):
        for number, (row, (stages, dilation)) in enumerate(rows.items()):
            write_run(
                tmp_path / str(3 * seed + number),
                *("+ablation=table", f"+ablation/table={row}", f"seed={seed}"),
                config={"deform": {"stages": stages}, "model": {"c5_dilation": dilation}},
            )
    other = {"deform": {"stages": "c5"}, "model": {"c5_dilation": 8}}
    write_run(tmp_path / "6", "+ablation/table=both", "seed=2", config=other)
    study = study_of(tmp_path, output=tmp_path / "study")
    assert [arm["arm"] for arm in study["arms"]] == list(rows) and study["baseline"] == "plain"
    assert all(arm["runs"].keys() == {"0", "1"} for arm in study["arms"])
    (why,) = study["left_out"].values()
    assert why == "it has model.c5_dilation=8, the other runs 2"
    two_keys = [tmp_path / "7", tmp_path / "8"]
    for run, lr in zip(two_keys, ("0.1", "0.2"), strict=True):
        write_run(run, f"+ablation/table={'both' if lr == '0.1' else 'plain'}", f"schedule.lr={lr}")
    assert list(arms_of(two_keys).values()) == [
        "table=both schedule.lr=0.1",
        "table=plain schedule.lr=0.2",
    ]


def test_nothing_to_study(sweep: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([str(tmp_path / "empty")], "there are no runs in it"),
        ([str(tmp_path / "absent")], "no such folder"),
        ([str(sweep), "baseline=c2"], "baseline=c2 must be one of the arms none, c5_v2"),
        ([], "give the folder of a sweep"),
        ([str(sweep), "resamples=1"], "resamples=1 must be at least 2"),
        ([str(sweep), "base=none"], "base"),
    ):
        monkeypatch.setattr(sys, "argv", ["study", *words])
        with pytest.raises(SystemExit) as stop:
            entry.run(command.main)
        assert stop.value.code in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
    for run in sweep.iterdir():
        (run / "summary.json").write_text('{"status": "failed", "error": "Boom"}')
    with pytest.raises(StudyError, match="no finished run to study.*Boom"):
        read_runs([sweep])


def test_voc(tmp_path: Path) -> None:
    for number in range(4):
        arm, seed = ("none", "c5_v2")[number // 2], number % 2
        write_run(
            tmp_path / str(number), f"deform={arm}", f"seed={seed}", config={"metric": "voc12"}
        )
    study = study_of(tmp_path, output=tmp_path)
    assert study["primary"] == "mAP" and "AP70" in study["arms"][0]["numbers"]
    assert any("Two seeds per arm" in note for note in study["notes"])
