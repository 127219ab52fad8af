"""Test the files, the candidates and the output of the benchmark of COCO's metrics."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from detector.evaluation import benchmark
from detector.evaluation.coco_format import as_detections, as_ground_truth


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = "--images 20 --classes 7 --objects 90 --detections 1000 --seed 3 --rounds 1"
    output = tmp_path / "evaluation.json"
    command = ["benchmark", *sizes.split(), "--json", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading == "| candidate | s | range, s | peak MiB | farthest from pycocotools |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in benchmark.CANDIDATES]
    content = json.loads(output.read_text())
    found = content["candidates"]
    assert content["seed"] == 3 and content["machine"]["processor"]
    assert found["ours"]["numbers"] == found["pycocotools"]["numbers"]
    assert 0 < found["ours"]["numbers"][0] < 1 and found["ours"]["distance"] == 0
    assert found["faster-coco-eval"]["distance"] < 1e-12
    difference, low, high = found["comparison"]["numbers"]
    assert low < difference < high
    assert all(one["MiB"] > 20 and one["seconds"] > 0 for one in found.values())


def test_the_sets_are_what_they_are_said_to_be() -> None:
    rng = np.random.default_rng(0)
    truth = benchmark.random_ground_truth(50, 8, 4000, rng)
    found = benchmark.random_detections(truth, 10_000, rng)
    assert as_ground_truth(truth.to_coco()).to_coco() == truth.to_coco()  # accepted as it is
    assert len(as_detections(found.to_coco())) == 10_000
    assert (np.bincount(found.image_ids)[1:] == 200).all()
    assert (truth.boxes[:, :2] >= 0).all()
    assert (truth.boxes[:, :2] + truth.boxes[:, 2:] <= benchmark.SIZE + 0.01).all()
    first, *_, last = np.bincount(truth.classes)
    assert first / last == pytest.approx(17 / 10, abs=0.3)
    assert truth.is_crowd.mean() == pytest.approx(0.01, abs=0.006)


def test_no_images_without_objects_break_it() -> None:
    rng = np.random.default_rng(0)
    truth = benchmark.random_ground_truth(50, 3, 1, rng)
    found = benchmark.random_detections(truth, 100, rng)
    assert len(found) == 100 and (found.boxes[:, 2:] > 0).all()
