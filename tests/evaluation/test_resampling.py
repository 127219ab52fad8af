"""Compare average precision on resamples with the metrics of sets in which images are repeated."""

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_voc_metrics
from test_coco_metrics import plain_pycocotools, random_set

from detector.evaluation.coco import coco_metrics
from detector.evaluation.coco_matches import coco_matches
from detector.evaluation.metrics import match
from detector.evaluation.resampling import draw_images, resampled


def repeated(
    ground_truth: dict, detections: list[dict], counts: np.ndarray, in_place: bool = False
) -> tuple[dict, list[dict]]:
    """Return a data set in which the i-th image is repeated counts[i] times.

    Images get new ids, and the ids of copies are consecutive. Detections are listed image by image
    or, if `in_place`, each next to its copies.
    """
    ids = sorted(image["id"] for image in ground_truth["images"])
    new_ids = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
    copies = {image_id: new.tolist() for image_id, new in zip(ids, new_ids, strict=True)}

    def of_copies(entries: list[dict]) -> list[dict]:
        result = [
            copy.deepcopy(entry) | {"image_id": new}
            for entry in entries
            for new in copies[entry["image_id"]]
        ]
        return result if in_place else sorted(result, key=lambda entry: entry["image_id"])

    annotations = of_copies(ground_truth["annotations"])
    return {
        "images": [{"id": i} for i in range(int(counts.sum()))],
        "annotations": [entry | {"id": i} for i, entry in enumerate(annotations, start=1)],
        "categories": ground_truth["categories"],
    }, of_copies(detections)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_coco_of_repeated_images(tmp_path: Path, class_agnostic: bool) -> None:
    """The sets have equal scores in and across images, crowds, absent classes and absent images."""
    rng = np.random.default_rng(7)
    num_interesting = 0
    for seed in range(12):
        ground_truth, detections = random_set(seed)
        counts = rng.integers(0, 4, (5, 4))
        counts[rng.integers(5), :] += 1  # so that no set is empty
        matches = match("coco", ground_truth, detections, class_agnostic=class_agnostic)
        aps = resampled("coco", matches, counts)
        for column in range(counts.shape[1]):
            stats = plain_pycocotools(
                tmp_path,
                *repeated(ground_truth, detections, counts[:, column]),
                class_agnostic=class_agnostic,
            )
            found = np.nan_to_num([aps["AP"][column], aps["AP50"][column]], nan=-1)
            assert found == pytest.approx(stats[:2], abs=1e-12), (seed, column)
            num_interesting += 0 < stats[0] < 1
    assert num_interesting > 40


@pytest.mark.parametrize("rule", test_voc_metrics.RULES)
@pytest.mark.parametrize("pixel_inclusive", [False, True])
def test_voc_of_repeated_images(rule: str, pixel_inclusive: bool) -> None:
    rng = np.random.default_rng(7)
    num_interesting = 0
    for seed in range(40):
        ground_truth, detections = test_voc_metrics.random_set(seed)
        counts = rng.integers(0, 4, (len(ground_truth["images"]), 4))
        options: Any = {"pixel_inclusive": pixel_inclusive, "iou_thresholds": (0.5, 0.3, 0.7)}
        matches = match(rule, ground_truth, detections, **options)
        found = resampled(rule, matches, counts)
        thresholds = {"mAP": Fraction(1, 2), "AP30": Fraction(3, 10), "AP70": Fraction(7, 10)}
        for name, threshold in thresholds.items():
            for column in range(counts.shape[1]):
                aps = test_voc_metrics.slow_aps(
                    *repeated(ground_truth, detections, counts[:, column], in_place=True),
                    rule,
                    threshold,
                    int(pixel_inclusive),
                )
                present = [ap for ap in aps.values() if ap is not None]
                mean = np.mean(present) if present else np.nan
                assert found[name][column] == pytest.approx(mean, abs=1e-12, nan_ok=True)
                num_interesting += bool(0 < mean < 1)
    assert num_interesting > 50


@pytest.mark.parametrize("seed", range(12))
def test_the_whole_set_is_scored_to_the_last_bit(seed: int) -> None:
    ground_truth, detections = random_set(seed)
    for class_agnostic in (False, True):
        matches = coco_matches(ground_truth, detections, class_agnostic=class_agnostic)
        metrics = coco_metrics(
            ground_truth, detections, class_agnostic=class_agnostic, backend="pycocotools"
        )
        assert matches.summary == {name: metrics.summary[name] for name in ("AP", "AP50")}


def test_images_are_drawn_with_replacement_and_alike_for_one_seed() -> None:
    counts = draw_images(50, 2000, np.random.default_rng(0))
    assert (counts.sum(axis=0) == 50).all()
    # Each of the 100 000 counts is binomial (50, 1/50), with mean 1 and variance 0.98.
    assert counts.mean() == 1 and counts.var() == pytest.approx(0.98, abs=0.02)
    assert (counts == draw_images(50, 2000, np.random.default_rng(0))).all()
