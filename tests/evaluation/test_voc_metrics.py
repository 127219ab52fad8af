"""Compare VOC metrics with the definition, as loops over exact fractions, and with sums by hand."""

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from detector.evaluation.entries import EvaluationError
from detector.evaluation.metrics import score
from detector.evaluation.voc import voc_metrics

RULES = ("voc07", "voc12")


def ground_truth_of(annotations: list[dict], num_images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": i} for i in range(num_images)],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


def box(x: float, size: float = 10, category: int = 2, image: int = 0, **more: Any) -> dict:
    bbox = [x, 0, size, 10]
    return {"image_id": image, "category_id": category, "bbox": bbox} | more


# ---- The definition in plain Python ----


def slow_iou(first: list[int], second: list[int], pixel: int) -> Fraction:
    (x1, y1, w1, h1), (x2, y2, w2, h2) = first, second
    w1, h1, w2, h2 = w1 + pixel, h1 + pixel, w2 + pixel, h2 + pixel
    width = min(x1 + w1, x2 + w2) - max(x1, x2)
    height = min(y1 + h1, y2 + h2) - max(y1, y2)
    if width <= 0 or height <= 0:
        return Fraction(0)
    return Fraction(width * height, w1 * h1 + w2 * h2 - width * height)


def slow_curve(
    objects: list[dict], detections: list[dict], threshold: Fraction, pixel: int
) -> list[tuple[Fraction, Fraction]]:
    """Return recall and precision after each detection that is not ignored."""
    num_objects = sum(not entry["iscrowd"] for entry in objects)
    taken: set[int] = set()
    curve, right, wrong = [], 0, 0
    order = sorted(range(len(detections)), key=lambda i: (-detections[i]["score"], i))
    for detection in (detections[i] for i in order):
        best, best_iou = None, Fraction(-1)
        for j, entry in enumerate(objects):
            iou = slow_iou(detection["bbox"], entry["bbox"], pixel)
            if entry["image_id"] == detection["image_id"] and iou > best_iou:
                best, best_iou = j, iou
        if best is None or best_iou < threshold:
            wrong += 1
        elif objects[best]["iscrowd"]:
            continue
        elif best in taken:
            wrong += 1
        else:
            taken.add(best)
            right += 1
        curve.append((Fraction(right, num_objects), Fraction(right, right + wrong)))
    return curve


def slow_ap(curve: list[tuple[Fraction, Fraction]], rule: str) -> Fraction:
    def best_precision(least_recall: Fraction) -> Fraction:
        return max((p for recall, p in curve if recall >= least_recall), default=Fraction(0))

    if rule == "voc07":
        return sum(best_precision(Fraction(k, 10)) for k in range(11)) / Fraction(11)
    recalls = sorted({Fraction(0)} | {recall for recall, _ in curve})
    steps = zip(recalls, recalls[1:], strict=False)
    return sum(((b - a) * best_precision(b) for a, b in steps), Fraction(0))


def slow_aps(
    ground_truth: dict, detections: list[dict], rule: str, threshold: Fraction, pixel: int
) -> dict[str, float | None]:
    aps: dict[str, float | None] = {}
    for category in ground_truth["categories"]:
        objects, found = (
            [entry for entry in entries if entry["category_id"] == category["id"]]
            for entries in (ground_truth["annotations"], detections)
        )
        if all(entry["iscrowd"] for entry in objects):
            aps[category["name"]] = None
        else:
            aps[category["name"]] = float(
                slow_ap(slow_curve(objects, found, threshold, pixel), rule)
            )
    return aps


def random_set(seed: int) -> tuple[dict[str, Any], list[dict]]:
    """Draw boxes on a coarse grid: equal boxes, equal IoUs, IoUs of exactly 1/2, equal scores."""
    rng = np.random.default_rng(seed)
    num_images = int(rng.integers(1, 4))

    def entries(count: int) -> list[dict]:
        return [
            {
                "image_id": int(rng.integers(num_images)),
                "category_id": int(rng.choice([2, 2, 2, 4])),
                "bbox": [*rng.integers(0, 3, 2).tolist(), *rng.integers(0, 5, 2).tolist()],
            }
            for _ in range(count)
        ]

    annotations = [
        entry | {"iscrowd": int(rng.random() < 0.25)} for entry in entries(int(rng.integers(0, 13)))
    ]
    found = [a | {"bbox": a["bbox"]} for a in annotations if rng.random() < 0.6]
    detections = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": float(rng.integers(1, 6) / 10)}
        for entry in entries(int(rng.integers(0, 16))) + found
    ]
    return ground_truth_of(annotations, num_images), detections


@pytest.mark.filterwarnings("error")  # the IoU of two empty boxes is 0, not 0 / 0
@pytest.mark.parametrize("pixel_inclusive", [False, True])
@pytest.mark.parametrize("threshold", ["0.5", "0.7"])
@pytest.mark.parametrize("rule", RULES)
def test_equal_to_the_definition(rule: Any, threshold: str, pixel_inclusive: bool) -> None:
    num_interesting = 0
    for seed in range(100):
        ground_truth, detections = random_set(seed)
        metrics = voc_metrics(
            ground_truth,
            detections,
            rule=rule,
            iou_thresholds=(float(threshold),),
            pixel_inclusive=pixel_inclusive,
        )
        expected = slow_aps(
            ground_truth, detections, rule, Fraction(threshold), int(pixel_inclusive)
        )
        name = f"AP{threshold[2]}0"
        aps = {class_name: values[name] for class_name, values in metrics.per_class.items()}
        # float64 sums of at most 11 terms against exact fractions
        assert aps == pytest.approx(expected, abs=1e-12), seed
        present = [ap for ap in expected.values() if ap is not None]
        mean = sum(present) / len(present) if present else None
        assert metrics.summary == pytest.approx({"mAP": mean, name: mean}, abs=1e-12)
        num_interesting += any(0 < ap < 1 for ap in present)
    assert num_interesting > 50


@pytest.mark.parametrize("pixel_inclusive", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_tables_have_both_thresholds(rule: str, pixel_inclusive: bool) -> None:
    for seed in range(30):
        ground_truth, detections = random_set(seed)
        metrics = score(rule, ground_truth, detections, pixel_inclusive=pixel_inclusive)
        for name, threshold in (("AP50", Fraction(1, 2)), ("AP70", Fraction(7, 10))):
            expected = slow_aps(ground_truth, detections, rule, threshold, int(pixel_inclusive))
            aps = {class_name: values[name] for class_name, values in metrics.per_class.items()}
            assert aps == pytest.approx(expected, abs=1e-12), seed
        assert metrics.summary["mAP"] == metrics.summary["AP50"]
        assert list(metrics.summary) == ["mAP", "AP50", "AP70"]
    assert "    mAP   AP50   AP70\n" in metrics.table(all_in="")


# ---- By hand ----


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Right, wrong (a duplicate), right: recalls 1/2, 1/2, 1, precisions 1, 1/2, 2/3.
        ("voc07", (6 * 1 + 5 * 2 / 3) / 11),  # precision 1 at 0 ... 0.5, 2/3 at 0.6 ... 1
        ("voc12", 0.5 * 1 + 0.5 * 2 / 3),
    ],
)
def test_second_detection_of_an_object_is_wrong(rule: Any, expected: float) -> None:
    ground_truth = ground_truth_of([box(0), box(50)])
    detections = [box(50, score=0.7), box(0, score=0.9), box(0, score=0.8)]
    metrics = voc_metrics(ground_truth, detections, rule=rule)
    assert metrics.per_class["cat"]["AP50"] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_only_the_best_overlap_is_compared(rule: Any) -> None:
    """The second detection overlaps both objects (IoU 9/11 and 8/12) and matches the nearer one."""
    ground_truth = ground_truth_of([box(0), box(3)])
    detections = [box(0, score=0.9), box(1, score=0.8), box(3, score=0.7)]
    metrics = voc_metrics(ground_truth, detections, rule=rule)
    # The detections are right, wrong, right as above. If the second one had matched the other
    # object, they would be right, right, wrong, and AP would be 1.
    assert metrics.summary["mAP"] is not None and metrics.summary["mAP"] < 0.9


@pytest.mark.parametrize(
    ("rule", "at_60"),
    [
        # At 0.6 the first detection is wrong: recalls 0, 1/2, precisions 0, 1/2.
        ("voc07", 6 / 11 * 1 / 2),  # precision 1/2 at 0 ... 0.5
        ("voc12", 1 / 2 * 1 / 2),
    ],
)
def test_other_iou_thresholds(rule: str, at_60: float) -> None:
    """The IoUs are 5/15 and 8/12. mAP is the AP at the first threshold, not at the lowest one."""
    ground_truth = ground_truth_of([box(0), box(50)])
    detections = [box(5, score=0.9), box(52, score=0.8)]
    metrics = score(rule, ground_truth, detections, iou_thresholds=(0.6, 0.3, 0.75))
    expected = {"AP60": pytest.approx(at_60, abs=1e-15), "AP30": 1, "AP75": 0}
    assert metrics.summary == {"mAP": expected["AP60"]} | expected
    assert metrics.per_class == {"cat": expected, "dog": dict.fromkeys(expected)}
    assert "    mAP   AP60   AP30   AP75\n" in metrics.table(all_in="")


def test_recall_reaches_a_tenth_exactly() -> None:
    """With 3 of 10 objects found and nothing wrong, precision is 1 at recalls 0, 0.1, 0.2 and 0.3.

    In floats, 3 * 0.1 > 3 / 10.
    """
    ground_truth = ground_truth_of([box(20 * i) for i in range(10)])
    detections = [box(20 * i, score=0.5) for i in range(3)]
    metrics = voc_metrics(ground_truth, detections, rule="voc07")
    assert metrics.summary["mAP"] == pytest.approx(4 / 11, abs=1e-15)
    metrics = voc_metrics(ground_truth, detections, rule="voc12")
    assert metrics.summary["mAP"] == pytest.approx(3 / 10, abs=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_difficult_objects_are_neither_right_nor_wrong_nor_missing(rule: Any) -> None:
    ground_truth = ground_truth_of([box(0), box(50, iscrowd=1), box(90, iscrowd=1)])
    detections = [box(50, score=0.9), box(50, score=0.8), box(0, score=0.7)]
    assert voc_metrics(ground_truth, detections, rule=rule).summary["mAP"] == 1


@pytest.mark.parametrize("rule", RULES)
def test_equal_scores_keep_their_order(rule: Any) -> None:
    ground_truth = ground_truth_of([box(0)])
    right, wrong = box(0, score=0.5), box(70, score=0.5)
    assert voc_metrics(ground_truth, [right, wrong], rule=rule).summary["mAP"] == 1
    assert voc_metrics(ground_truth, [wrong, right], rule=rule).summary["mAP"] == 0.5


@pytest.mark.parametrize("rule", RULES)
def test_an_iou_of_the_threshold_is_enough(rule: Any) -> None:
    """A box of 10 x 10 and its half have an IoU of 50 / 100.

    With a pixel added, they are 11 x 11 and 6 x 11, and have an IoU of 66 / 121.
    """
    ground_truth, half = ground_truth_of([box(0, 10)]), [box(0, 5, score=0.5)]
    assert voc_metrics(ground_truth, half, rule=rule).summary == {"mAP": 1, "AP50": 1}
    stricter = voc_metrics(ground_truth, half, rule=rule, iou_thresholds=(0.51,))
    assert stricter.summary == {"mAP": 0, "AP51": 0}
    pixels = voc_metrics(
        ground_truth, half, rule=rule, iou_thresholds=(0.54,), pixel_inclusive=True
    )
    assert pixels.summary == {"mAP": 1, "AP54": 1}


@pytest.mark.parametrize("rule", RULES)
def test_boxes_of_other_images_and_classes_do_not_match(rule: Any) -> None:
    ground_truth = ground_truth_of([box(0), box(0, category=4, image=1)], num_images=2)
    detections = [box(0, image=1, score=0.9), box(0, category=4, score=0.9)]
    metrics = voc_metrics(ground_truth, detections, rule=rule)
    assert metrics.per_class == {"cat": {"AP50": 0}, "dog": {"AP50": 0}}


@pytest.mark.parametrize("rule", RULES)
def test_classes_without_objects_have_no_part_in_the_mean(rule: Any) -> None:
    difficult_dog = box(40, category=4, iscrowd=1)
    ground_truth = ground_truth_of([box(0), difficult_dog])
    detections = [box(0, score=0.5), box(80, category=4, score=0.5)]
    metrics = voc_metrics(ground_truth, detections, rule=rule)
    assert metrics.per_class == {"cat": {"AP50": 1}, "dog": {"AP50": None}}
    assert metrics.summary == {"mAP": 1, "AP50": 1}


@pytest.mark.parametrize("rule", RULES)
def test_no_detections_and_no_objects(rule: Any) -> None:
    assert voc_metrics(ground_truth_of([box(0)]), [], rule=rule).summary["mAP"] == 0
    assert voc_metrics(ground_truth_of([]), [], rule=rule).summary["mAP"] is None
    only_wrong = voc_metrics(ground_truth_of([]), [box(0, score=0.5)], rule=rule)
    assert only_wrong.summary["mAP"] is None


def test_inputs_stay_as_they_are() -> None:
    ground_truth, detections = random_set(3)
    before = copy.deepcopy((ground_truth, detections))
    voc_metrics(ground_truth, detections, rule="voc12")
    assert (ground_truth, detections) == before


def test_refusals() -> None:
    ground_truth = ground_truth_of([box(0)])
    with pytest.raises(ValueError, match="rule: expected one of .*, got 'voc10'"):
        voc_metrics(ground_truth, [], rule="voc10")  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=r"iou_thresholds=\[0.5, 50\] must be one or more"):
        voc_metrics(ground_truth, [], rule="voc12", iou_thresholds=(0.5, 50))
    with pytest.raises(EvaluationError, match=r"must differ: they are named AP50, AP50"):
        voc_metrics(ground_truth, [], rule="voc12", iou_thresholds=(0.5, 0.50000001))
    with pytest.raises(EvaluationError, match=r"detections\[0\]: image_id 3 is not in"):
        voc_metrics(ground_truth, [box(0, image=3, score=0.5)], rule="voc12")
    for thresholds in ((), (0.5, 0.0), (50.0,), (float("nan"),)):
        with pytest.raises(EvaluationError, match=r"iou_thresholds=.* must be .* in \(0, 1\]"):
            score("voc12", ground_truth, [], iou_thresholds=thresholds)
    with pytest.raises(EvaluationError, match=r"iou_thresholds=\[0.3\] is for metric=voc07 and"):
        score("coco", ground_truth, [], iou_thresholds=(0.3,))
