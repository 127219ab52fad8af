"""Compare COCO metrics with plain pycocotools on files, and with small sums by hand."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.evaluation.coco import SUMMARY_NAMES, coco_metrics
from detector.evaluation.entries import EvaluationError
from detector.evaluation.metrics import Metrics, score


def ground_truth_of(annotations: list[dict], num_images: int = 1) -> dict[str, Any]:
    numbered = [annotation | {"id": i} for i, annotation in enumerate(annotations, start=1)]
    return {
        "images": [{"id": i} for i in range(num_images)],
        "annotations": numbered,
        "categories": [{"id": 4, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


def box(x: float, size: float, category: int = 2, image: int = 0, **more: Any) -> dict[str, Any]:
    bbox = [x, 0, size, size]
    return {"image_id": image, "category_id": category, "bbox": bbox} | more


def random_set(seed: int) -> tuple[dict[str, Any], list[dict]]:
    """Draw objects of all sizes, some crowds, and detections near and far, with equal scores."""
    rng = np.random.default_rng(seed)
    num_images = 5
    annotations, detections = [], []
    for _ in range(30):
        x, y = rng.uniform(0, 200, 2)
        width, height = 2 ** rng.uniform(2, 8, 2)
        place = {"image_id": int(rng.integers(num_images)), "category_id": int(rng.choice([2, 4]))}
        bbox = [x, y, width, height]
        area = width * height * rng.uniform(0.5, 1)
        annotations.append(
            place | {"bbox": bbox, "area": area, "iscrowd": int(rng.random() < 0.15)}
        )
        for _ in range(rng.integers(4)):
            near = (np.array(bbox) * rng.uniform(0.8, 1.2, 4)).tolist()
            place = place | {"category_id": int(rng.choice([2, 4]))}
            detections.append(place | {"bbox": near, "score": float(rng.integers(1, 9) / 10)})
    return ground_truth_of(annotations, num_images), detections


def plain_pycocotools(
    folder: Path,
    ground_truth: dict,
    detections: list[dict],
    category: int | None = None,
    class_agnostic: bool = False,
) -> np.ndarray:
    gt_path, dt_path = folder / "gt.json", folder / "dt.json"
    gt_path.write_text(json.dumps(ground_truth))
    dt_path.write_text(json.dumps(detections))
    coco = COCO(str(gt_path))
    if not coco.imgs or not detections:  # loadRes would fail
        return np.full(12, 0.0 if any(not a["iscrowd"] for a in coco.anns.values()) else -1.0)
    evaluator = COCOeval(coco, coco.loadRes(str(dt_path)), "bbox")
    if category is not None:
        evaluator.params.catIds = [category]
    evaluator.params.useCats = int(not class_agnostic)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats


def as_pycocotools(values: Any) -> list[float]:
    return [-1.0 if value is None else value for value in values]


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_plain_pycocotools(tmp_path: Path, seed: int) -> None:
    ground_truth, detections = random_set(seed)
    metrics = coco_metrics(ground_truth, detections)
    stats = plain_pycocotools(tmp_path, ground_truth, detections)
    assert tuple(metrics.summary) == SUMMARY_NAMES
    assert as_pycocotools(metrics.summary.values()) == stats.tolist()  # the same sums: no tolerance
    assert 0 < stats[0] < 1
    for name, category in (("cat", 2), ("dog", 4)):
        stats = plain_pycocotools(tmp_path, ground_truth, detections, category)
        aps = as_pycocotools(metrics.per_class[name].values())
        # numpy may add the same numbers in another order
        assert aps == pytest.approx(stats[:2].tolist(), rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_class_agnostic(tmp_path: Path, seed: int) -> None:
    ground_truth, detections = random_set(seed)
    metrics = coco_metrics(ground_truth, detections, class_agnostic=True)
    stats = plain_pycocotools(tmp_path, ground_truth, detections, class_agnostic=True)
    assert as_pycocotools(metrics.summary.values()) == stats.tolist()
    assert (metrics.per_class, metrics.curves) == ({}, {})
    assert metrics.summary != coco_metrics(ground_truth, detections).summary


def test_the_class_does_not_matter_where_all_are_one() -> None:
    ground_truth, detections = ground_truth_of([box(0, 10)]), [box(0, 10, category=4, score=0.5)]
    assert coco_metrics(ground_truth, detections).summary["AP"] == 0
    agnostic = coco_metrics(ground_truth, detections, class_agnostic=True)
    assert agnostic.summary["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("num_sets", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_both_backends_are_equal(num_sets: int) -> None:
    """They agree to the last bit, also without detections and with ids too large for a float."""
    for seed in range(num_sets):
        ground_truth, detections = random_set(seed)
        if seed % 25 == 0:
            detections = []
        if seed % 2:
            for entry in ground_truth["images"]:
                entry["id"] += 2**62
            for entry in ground_truth["annotations"] + detections:
                entry["image_id"] += 2**62
        ours, judged = (
            coco_metrics(ground_truth, detections, backend=backend, class_agnostic=seed % 5 == 0)
            for backend in ("numpy", "pycocotools")
        )
        assert ours.summary == judged.summary, seed
        assert ours.per_class == judged.per_class, seed
        assert ours.curves.keys() == judged.curves.keys()
        for name, curve in judged.curves.items():
            assert (ours.curves[name].precision == curve.precision).all(), seed


@pytest.mark.parametrize("area", [32**2, 96**2, 1e10])
def test_areas_at_the_limits_of_the_sizes(area: float) -> None:
    """Areas are exactly at a limit or one float step beside it.

    Objects are sorted into sizes by their area, detections by the area of their box.
    """
    sides = [np.nextafter(area**0.5, to) for to in (0, area**0.5, np.inf)]
    objects = [box(4 * area**0.5 * i, side) for i, side in enumerate(sides)]
    found = [entry | {"score": 0.5} for entry in objects]
    elsewhere = [entry | {"score": 0.6, "image_id": 1} for entry in objects]
    ground_truth = ground_truth_of(objects, num_images=2)
    for detections in (found, elsewhere, found + elsewhere):
        ours, judged = (
            coco_metrics(ground_truth, detections, backend=backend)
            for backend in ("numpy", "pycocotools")
        )
        assert ours.summary == judged.summary


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(EvaluationError, match="backend=fast must be one of numpy, pycocotools"):
        coco_metrics(ground_truth_of([box(0, 10)]), [], backend="fast")


def test_more_detections_than_are_counted(tmp_path: Path) -> None:
    """Only the best 100 of an image and class count: the 101st is ignored, although it is right."""
    ground_truth = ground_truth_of([box(0, 50, area=2500, iscrowd=0)])
    detections = [box(300 + i, 10, score=0.9) for i in range(100)] + [box(0, 50, score=0.5)]
    assert coco_metrics(ground_truth, detections).summary["AP"] == 0
    assert coco_metrics(ground_truth, detections[1:]).summary["AR100"] == 1
    stats = plain_pycocotools(tmp_path, ground_truth, detections[1:])
    assert list(coco_metrics(ground_truth, detections[1:]).summary.values())[:3] == list(stats[:3])


def test_perfect_detections_score_one_in_each_size_that_exists() -> None:
    objects = [box(0, 10), box(200, 50, category=4)]  # 100 < 32^2, 32^2 < 2500 < 96^2
    metrics = coco_metrics(ground_truth_of(objects), [entry | {"score": 0.5} for entry in objects])
    none_of_the_large = {name: None if name in ("APl", "ARl") else 1.0 for name in SUMMARY_NAMES}
    assert metrics.summary == pytest.approx(none_of_the_large, abs=1e-12)  # pr = tp / (tp + eps)


@pytest.mark.parametrize("times", [1, 2])
def test_one_of_two_found(times: int) -> None:
    """Precision is 1 at the recalls 0, 0.01 ... 0.50, which are 51 of 101 points, and 0 above."""
    detections = [box(0, 10, score=0.1)] * times
    metrics = coco_metrics(ground_truth_of([box(0, 10), box(50, 10)]), detections)
    assert metrics.summary["AP"] == pytest.approx(51 / 101, abs=1e-12)
    assert metrics.summary["AR100"] == 0.5


def test_one_detection_allowed_of_two() -> None:
    objects = [box(0, 10), box(50, 10)]
    metrics = coco_metrics(ground_truth_of(objects), [entry | {"score": 0.5} for entry in objects])
    assert (metrics.summary["AR1"], metrics.summary["AR10"]) == (0.5, 1.0)


def test_iou_decides_the_thresholds_that_are_met() -> None:
    """Boxes of 10 x 10, 2 apart, have an IoU of 8 / 12 = 0.667, above four of ten thresholds."""
    metrics = coco_metrics(ground_truth_of([box(0, 10)]), [box(2, 10, score=0.5)])
    assert metrics.per_class["cat"] == pytest.approx({"AP": 0.4, "AP50": 1.0}, abs=1e-12)
    assert metrics.summary["AP75"] == 0


def test_annotation_ids_mean_nothing() -> None:
    ground_truth = ground_truth_of([box(0, 10), box(50, 10)])
    detections = [box(0, 10, score=0.9), box(50, 10, score=0.8)]
    for first, second in ((0, 1), (5, 5)):
        ground_truth["annotations"][0]["id"] = first
        ground_truth["annotations"][1]["id"] = second
        summary = coco_metrics(ground_truth, detections).summary
        assert summary["AP"] == pytest.approx(1, abs=1e-12)


def test_detecting_a_crowd_is_not_wrong() -> None:
    ground_truth = ground_truth_of([box(0, 10), box(50, 40, iscrowd=1)])
    detections = [box(0, 10, score=0.5), box(55, 10, score=0.9), box(65, 10, score=0.8)]
    assert coco_metrics(ground_truth, detections).summary["AP"] == pytest.approx(1, abs=1e-12)
    ground_truth["annotations"][1]["iscrowd"] = 0
    as_object = coco_metrics(ground_truth, detections).summary["AP"]
    assert as_object is not None and as_object < 0.4


def test_no_detections_score_zero() -> None:
    metrics = coco_metrics(ground_truth_of([box(0, 10)]), [])
    absent = ("APm", "APl", "ARm", "ARl")
    assert metrics.summary == {name: None if name in absent else 0 for name in SUMMARY_NAMES}


def test_class_without_objects_has_no_score_and_no_part_in_the_mean() -> None:
    detections = [box(0, 10, score=0.5), box(0, 10, category=4, score=0.9)]
    metrics = coco_metrics(ground_truth_of([box(0, 10)]), detections)
    assert metrics.per_class["dog"] == {"AP": None, "AP50": None}
    assert list(metrics.per_class) == ["cat", "dog"]  # ids 2 and 4; the file has them reversed
    assert metrics.summary["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("without", ["annotations", "images", "categories"])
def test_nothing_to_be_found(without: str) -> None:
    ground_truth = ground_truth_of([]) | {without: []}
    metrics = coco_metrics(ground_truth, [])
    assert set(metrics.summary.values()) == {None}
    assert {ap for aps in metrics.per_class.values() for ap in aps.values()} <= {None}


def test_inputs_stay_as_they_are_and_nothing_is_printed(capsys: pytest.CaptureFixture) -> None:
    ground_truth, detections = random_set(0)
    before = copy.deepcopy((ground_truth, detections))
    coco_metrics(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capsys.readouterr() == ("", "")


def test_nan_score_refused() -> None:
    with pytest.raises(EvaluationError, match=r"detections\[0\]: score: .* got nan"):
        coco_metrics(ground_truth_of([box(0, 10)]), [box(0, 10, score=float("nan"))])


def test_curves() -> None:
    """Two of three objects are found, with a wrong detection between: precisions 1/1, 1/2, 2/3.

    The second object is found at an IoU of 27 / 53 = 0.51. The crowd, and the object that is
    larger than COCO's largest area, are ignored.
    """
    others = [box(400, 40, iscrowd=1), box(500, 40, area=2e10)]
    ground_truth = ground_truth_of([box(0, 40), box(100, 40), box(200, 40), *others])
    detections = [box(0, 40, score=0.9), box(300, 40, score=0.8), box(113, 40, score=0.7)]
    (curve,) = coco_metrics(ground_truth, detections).curves.values()
    assert curve.num_objects == 3
    assert curve.precision == pytest.approx([1.0] * 34 + [2 / 3] * 33 + [0.0] * 34)


def test_class_names_that_would_break_a_table() -> None:
    ground_truth = ground_truth_of([box(0, 10)])
    ground_truth["categories"][0]["name"] = "a|b\nc\x1b"
    lines = score("coco", ground_truth, []).table(all_in="").splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["cat", "0.0", "0.0"],
        ["a|b", "c\\x1b", "-", "-"],
    ]


def test_of_many_classes_the_best_and_the_worst_are_shown() -> None:
    per_class = {f"class {n}": {"AP": (7 * n % 19) / 100} for n in range(19)}  # 0 to 18 percent
    names = [
        name for block in ("AP AP50 AP75 APs APm APl", "AR1 AR10 AR100") for name in block.split()
    ]
    few = Metrics(dict.fromkeys(names, 0.5), per_class).table(all_in="all.json")
    assert "all.json" not in few and [line.split()[1] for line in few.splitlines()[-19:]] == [
        str(number) for number in range(19)
    ]
    per_class |= {
        "a name that is far too long for eighty columns": {"AP": 0.9},
        "none": {"AP": None},
    }
    lines = Metrics(dict.fromkeys(names, 0.5), per_class).table(all_in="all.json").splitlines()
    assert [line.split()[-1] for line in lines[-12:-7]] == ["90.0", "18.0", "17.0", "16.0", "15.0"]
    assert lines[-7] == "... 10 more in all.json"
    assert [line.split()[-1] for line in lines[-6:-1]] == ["4.0", "3.0", "2.0", "1.0", "0.0"]
    assert lines[-1] == "... 1 without objects to detect"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("with_objects", [0, 1, 7, 10, 11, 25])
def test_the_table_accounts_for_every_one_of_many_classes(with_objects: int) -> None:
    per_class = {
        f"class {n}": {"AP": n / 100 if n < with_objects else None, "AP50": None} for n in range(25)
    }
    metrics = Metrics({"AP": 0.5, "AP50": 0.5}, per_class)
    lines = metrics.table(all_in="all.json").splitlines()[4:]
    shown = [line.split()[1] for line in lines if line.startswith("class")]
    best_first = [str(n) for n in reversed(range(with_objects))]
    if with_objects > 10:
        assert shown == best_first[:5] + best_first[-5:]
        assert lines[5] == f"... {with_objects - 10} more in all.json"
    else:
        assert shown == best_first and not any("all.json" in line for line in lines)
    without = [f"... {25 - with_objects} without objects to detect"] * (with_objects < 25)
    assert lines[len(shown) + (with_objects > 10) :] == without
