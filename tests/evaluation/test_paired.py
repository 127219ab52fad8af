"""Compare the paired bootstrap with the metrics of every resample."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from test_coco_metrics import box, ground_truth_of, plain_pycocotools, random_set
from test_resampling import repeated

from detector import entry
from detector.commands import evaluate
from detector.config import ConfigError, parse
from detector.evaluation.coco import coco_metrics
from detector.evaluation.entries import EvaluationError
from detector.evaluation.paired import compare
from detector.evaluation.resampling import draw_images
from detector.schema import EvaluateConfig


def test_the_interval_is_that_of_scoring_every_resample(tmp_path: Path) -> None:
    ground_truth, first = random_set(0)
    second = [d | {"score": 1 - d["score"]} for d in first[::2]] + first[1::2]
    comparison = compare(ground_truth, first, second, metric="coco", num_resamples=40, seed=3)
    counts = draw_images(5, 40, np.random.default_rng(3))
    stats = np.array(
        [
            [
                plain_pycocotools(tmp_path, *repeated(ground_truth, side, column))[:2]
                for side in (first, second)
            ]
            for column in counts.T
        ]
    )  # (B, 2 detectors, 2 numbers)
    assert (stats >= 0).all()  # no resample without an object
    whole = [plain_pycocotools(tmp_path, ground_truth, side)[:2] for side in (first, second)]
    for i, name in enumerate(("AP", "AP50")):
        difference = comparison.numbers[name]
        assert difference is not None
        assert [difference.first, difference.second] == [whole[0][i], whole[1][i]]
        assert difference.difference == whole[0][i] - whole[1][i]
        differences = stats[:, 0, i] - stats[:, 1, i]
        # Of 40 sorted numbers, the 2.5th percentile is at 0.025 * 39 = 0.975, between the first
        # two.
        lowest, next_lowest = np.sort(differences)[:2]
        assert difference.low == pytest.approx(0.025 * lowest + 0.975 * next_lowest, abs=1e-12)
        highest, next_highest = np.sort(differences)[:-3:-1]
        assert difference.high == pytest.approx(0.025 * highest + 0.975 * next_highest, abs=1e-12)
        assert difference.low < difference.high
        assert difference.share_above == (np.mean(differences > 0) + np.mean(differences == 0) / 2)


@pytest.mark.parametrize("metric", ["coco", "voc07", "voc12"])
def test_no_difference_from_itself(metric: str) -> None:
    ground_truth, detections = random_set(1)
    for number in compare(
        ground_truth, detections, detections, metric=metric, num_resamples=20, seed=0
    ).numbers.values():
        assert number is not None and 0 < number.first < 1
        assert (number.difference, number.low, number.high) == (0, 0, 0)
        assert number.share_above == 0.5


def test_nothing_detected_and_nothing_to_be_found() -> None:
    ground_truth = ground_truth_of([box(0, 10)])
    right = [box(0, 10, score=0.5)]
    against_nothing = compare(ground_truth, right, [], metric="voc12", num_resamples=5, seed=0)
    number = against_nothing.numbers["mAP"]
    assert number is not None and number.difference == number.share_above == 1
    assert [number.low, number.high] == pytest.approx([1, 1], abs=1e-12)
    nothing = compare(ground_truth_of([]), right, [], metric="coco", num_resamples=5, seed=0)
    assert nothing.numbers == {"AP": None, "AP50": None}
    assert "| AP | - |" in nothing.table()


def test_refusals() -> None:
    sets: Any = (ground_truth_of([box(0, 10)]), [], [])
    with pytest.raises(EvaluationError, match="resamples=0 must be at least 1"):
        compare(*sets, metric="coco", num_resamples=0, seed=0)
    with pytest.raises(EvaluationError, match="seed=-1 must be at least 0"):
        compare(*sets, metric="coco", num_resamples=9, seed=-1)
    with pytest.raises(EvaluationError, match="metric=voc must be one of"):
        compare(*sets, metric="voc", num_resamples=9, seed=0)
    with pytest.raises(EvaluationError, match="resamples=1 are too few: none has an object"):
        undrawn = int(np.flatnonzero(draw_images(50, 1, np.random.default_rng(0)) == 0)[0])
        lonely = ground_truth_of([box(0, 10, image=undrawn)], 50)
        compare(lonely, [], [], metric="voc12", num_resamples=1, seed=0)
    with pytest.raises(EvaluationError, match="key 'annotations' is missing"):
        compare({"images": []}, [], [], metric="coco", num_resamples=9, seed=0)
    with pytest.raises(EvaluationError, match="the ground truth has none"):
        compare(ground_truth_of([], 0), [], [], metric="coco", num_resamples=9, seed=0)


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run evaluate.py in this process, and return its metrics.json."""
    with initialize_config_dir(str(entry.CONFIGS), version_base="1.3"):
        config = compose("evaluate", overrides=[*overrides, f"output={folder}"])
    evaluate.run(parse(EvaluateConfig, config))
    return json.loads((folder / "metrics.json").read_text())


def test_from_the_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ground_truth, first = random_set(0)
    second = first[::2]
    for name, content in (("gt", ground_truth), ("a", first), ("b", second)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    one = [f"data.annotations={tmp_path / 'gt.json'}", f"detections={tmp_path / 'a.json'}"]
    two = [*one, f"compare_with={tmp_path / 'b.json'}", "resamples=30"]
    caplog.set_level("INFO")
    coco = run(tmp_path, *two)
    expected = compare(ground_truth, first, second, metric="coco", num_resamples=30, seed=0)
    assert coco["comparison"] == expected.as_json()
    assert coco["metrics"]["AP"] == coco_metrics(ground_truth, first).summary["AP"]
    assert expected.table() in caplog.text
    assert run(tmp_path, *two, "seed=1")["comparison"] != coco["comparison"]
    assert run(tmp_path, *two, "metric=voc07")["comparison"]["numbers"].keys() == {"mAP", "AP70"}
    at_30 = ["metric=voc07", "iou_thresholds=[0.3]"]
    assert run(tmp_path, *two, *at_30)["metrics"] == {
        "mAP": run(tmp_path, *one, *at_30)["metrics"]["AP30"]
    }

    agnostic = coco_metrics(ground_truth, first, class_agnostic=True).summary
    assert run(tmp_path, *one, "class_agnostic=true") == {"metrics": agnostic, "per_class": {}}
    plain, pixels = (
        run(tmp_path, *one, "metric=voc07", f"pixel_inclusive={flag}")["metrics"]
        for flag in ("false", "true")
    )
    assert plain.keys() == {"mAP", "AP50", "AP70"} and plain != pixels
    for option, metric in (("pixel_inclusive=true", "coco"), ("class_agnostic=true", "voc12")):
        with pytest.raises(ConfigError, match=f"{option} is for .* got metric={metric}"):
            run(tmp_path, *one, option, f"metric={metric}")
    judged = "backend=pycocotools"
    with pytest.raises(ConfigError, match=f"{judged} is for metric=coco, got metric=voc12"):
        run(tmp_path, *one, judged, "metric=voc12")
    with pytest.raises(ConfigError, match="backend=quick must be one of numpy, pycocotools"):
        run(tmp_path, *one, "backend=quick")
    with pytest.raises(ConfigError, match=f"{judged} cannot be used with compare_with"):
        run(tmp_path, *two, judged)
    assert run(tmp_path, *one, judged) == run(tmp_path, *one)
