"""Compare the matches of a whole data set with those of pycocotools, by image and class."""

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_coco_metrics import box, ground_truth_of

from detector.evaluation import matches as matches_module
from detector.evaluation.coco import coco_metrics
from detector.evaluation.coco_matches import coco_matches
from detector.evaluation.entries import EvaluationError

IMAGE_IDS = [9, 2**63 - 1, 2, -4, 5]


def crowded_set(seed: int) -> tuple[dict[str, Any], list[dict]]:
    """Draw boxes on a coarse grid, for many special cases.

    There are equal boxes, equal IoUs, equal scores, IoUs that are exactly a threshold, crowds,
    boxes beyond the largest area, more than 100 detections of a class, empty boxes, areas that
    differ from the box's, and images with only objects, only detections or neither. Detections are
    listed in random order.
    """
    rng = np.random.default_rng(seed)

    def boxes(num: int, image: int) -> list[dict]:
        huge = rng.choice([1, 1, 1, 1, 60_000], num)  # 4 * 60 000 squared is above 1e10
        return [
            {
                "image_id": image,
                "category_id": int(rng.choice([2, 4])),
                "bbox": [
                    *rng.integers(0, 3, 2).tolist(),
                    *(scale * rng.integers(0, 5, 2)).tolist(),
                ],
            }
            for scale in huge
        ]

    annotations, detections = [], []
    contents = [(12, 30), (25, 260), (0, 9), (5, 0), (0, 0)]
    for image, (num_objects, num_detections) in zip(IMAGE_IDS, contents, strict=True):
        for entry in boxes(num_objects, image):
            area = float(rng.choice([entry["bbox"][2] * entry["bbox"][3], 1, 1e10, 2e10]))
            annotations.append(entry | {"area": area, "iscrowd": int(rng.random() < 0.2)})
        for entry in boxes(num_detections, image):
            detections.append(entry | {"score": float(rng.integers(1, 9) / 10)})
    order = rng.permutation(len(detections))
    ground_truth = ground_truth_of(annotations) | {"images": [{"id": image} for image in IMAGE_IDS]}
    return ground_truth, [detections[i] for i in order]


def pycocotools_results(
    ground_truth: dict, detections: list[dict], class_agnostic: bool
) -> list[dict[str, Any] | None]:
    """Return the results of pycocotools by class and then by image."""
    coco, found = COCO(), COCO()
    coco.dataset = copy.deepcopy(ground_truth)
    found.dataset = coco.dataset | {
        "annotations": [
            copy.deepcopy(one)
            | {"id": number, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
            for number, one in enumerate(detections, start=1)
        ]
    }
    coco.createIndex()
    found.createIndex()
    evaluator = COCOeval(coco, found, "bbox")
    evaluator.params.useCats = int(not class_agnostic)
    evaluator.params.areaRng = evaluator.params.areaRng[:1]
    evaluator.evaluate()
    return evaluator.evalImgs


@pytest.mark.filterwarnings("error")  # the IoU of two empty boxes is 0, not 0 / 0
@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_every_detection_and_threshold(
    seed: int, class_agnostic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matches_module, "BLOCK", 7 if seed % 2 else 2000)
    ground_truth, detections = crowded_set(seed)
    matches = coco_matches(ground_truth, detections, class_agnostic=class_agnostic)
    of_images = pycocotools_results(ground_truth, detections, class_agnostic)
    assert len(matches.classes) == (1 if class_agnostic else 2)
    for place, of_class in enumerate(matches.classes):
        num_found = 0
        for image, expected in enumerate(of_images[5 * place : 5 * place + 5]):
            ours = of_class.images == image
            if expected is None:
                assert not ours.any() and (of_class.object_images != image).all()
                continue
            found, ignored = expected["dtMatches"] != 0, expected["dtIgnore"] != 0
            assert (of_class.true_positives[:, ours] == (found & ~ignored)).all()
            assert (of_class.false_positives[:, ours] == (~found & ~ignored)).all()
            assert expected["image_id"] == sorted(IMAGE_IDS)[image]
            assert (of_class.object_images == image).sum() == (expected["gtIgnore"] == 0).sum()
            num_found += ours.sum()
        assert num_found == len(of_class.images)
    ours, judged = (
        coco_metrics(ground_truth, detections, class_agnostic=class_agnostic, backend=backend)
        for backend in ("numpy", "pycocotools")
    )
    assert ours.summary == judged.summary and ours.per_class == judged.per_class
    assert matches.summary == {name: judged.summary[name] for name in ("AP", "AP50")}


def test_the_sets_have_what_they_are_for() -> None:
    """They have detections that match an ignored annotation, detections that are too large to be
    wrong, matches, and images with 100 detections or more of a class.
    """
    counts = np.zeros(4, dtype=int)
    for seed in range(25):
        ground_truth, detections = crowded_set(seed)
        for expected in pycocotools_results(ground_truth, detections, False):
            if expected is not None:
                found, ignored = expected["dtMatches"] != 0, expected["dtIgnore"] != 0
                full = len(expected["dtScores"]) == 100
                counts += [(found & ignored).sum(), (~found & ignored).sum(), found.sum(), full]
    assert (counts > [1000, 1000, 1000, 20]).all(), counts


def test_nothing_detected_nothing_to_be_found_no_classes() -> None:
    one = ground_truth_of([box(0, 10)])
    assert coco_matches(one, []).summary == {"AP": 0, "AP50": 0}
    assert coco_matches(ground_truth_of([]), [box(0, 10, score=0.5)]).summary == {
        "AP": None,
        "AP50": None,
    }
    empty: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    assert coco_matches(empty, []).summary == {"AP": None, "AP50": None}
    with pytest.raises(EvaluationError, match="image_id 3 is not in the ground truth"):
        coco_matches(one, [box(0, 10, image=3, score=0.5)])
