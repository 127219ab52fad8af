"""Kinds of errors and their cost in AP, compared with cases worked out by hand."""

import numpy as np
import pytest
from error_cases import CAT, DOG, box, random_set, truth_of

from detector.analysis.errors.diagnosis import KINDS, Diagnosis, diagnose
from detector.analysis.errors.gains import error_split, fixed
from detector.evaluation.coco import coco_metrics
from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.entries import EvaluationError


def kinds_of(truth: dict, detections: list[dict]) -> tuple[list[str | None], set[int]]:
    diagnosis = diagnose(as_ground_truth(truth), as_detections(detections))
    assert diagnosis.detections.to_coco() == detections
    return names_of(diagnosis), set(np.flatnonzero(diagnosis.missed).tolist())


def names_of(diagnosis: Diagnosis) -> list[str | None]:
    return [None if kind < 0 else KINDS[kind] for kind in diagnosis.kinds]


# There is a cat at 0 and a dog at 1000. IoU of a detection with its object, by its shift:
# 20 -> 80/120 = 0.67, 50 -> 50/150 = 0.33, 90 -> 10/190 = 0.05.
@pytest.mark.parametrize(
    "detections, kinds, missed",
    [
        ([box(20, score=0.9)], [None], {1}),
        ([box(50, score=0.9)], ["localisation"], {1}),
        ([box(20, DOG, score=0.9)], ["classification"], {1}),
        ([box(50, DOG, score=0.9)], ["both"], {0, 1}),
        ([box(90, score=0.9)], ["background"], {0, 1}),
        ([box(90, DOG, score=0.9)], ["background"], {0, 1}),
        ([box(20, score=0.8), box(10, score=0.9)], ["duplicate", None], {1}),
        ([box(500, score=0.9)], ["background"], {0, 1}),
        ([], [], {0, 1}),
    ],
)
def test_each_kind(detections: list[dict], kinds: list[str | None], missed: set[int]) -> None:
    assert kinds_of(truth_of(box(0), box(1000, DOG)), detections) == (kinds, missed)


def test_the_edges_of_the_thresholds() -> None:
    # A part is inside the object's box, so that its IoU is its share of the object's area.
    def part(height: float, category: int = CAT) -> dict:
        return box(0, category, score=0.9) | {"bbox": [0, 0, 100, height]}

    truth = truth_of(box(0))
    assert kinds_of(truth, [part(50)]) == ([None], set())
    assert kinds_of(truth, [part(49)]) == (["localisation"], set())
    assert kinds_of(truth, [part(10)]) == (["localisation"], set())
    assert kinds_of(truth, [part(9)]) == (["background"], {0})
    assert kinds_of(truth, [part(50, DOG)]) == (["classification"], set())
    assert kinds_of(truth, [part(49, DOG)]) == (["both"], {0})
    assert kinds_of(truth, [part(10, DOG)]) == (["background"], {0})


def test_precedence_of_kinds() -> None:
    # A cat and a dog have the same box. The second cat detection there is a duplicate of the cat
    # and has the wrong class for the dog: classification takes precedence.
    truth = truth_of(box(0), box(0, DOG))
    detections = [box(0, score=0.9), box(0, score=0.8)]
    assert kinds_of(truth, detections) == ([None, "classification"], set())
    # Localisation takes precedence over classification: the detection is shifted by 50 from a cat
    # (IoU 0.33) and by 20 from a dog (IoU 0.67).
    truth = truth_of(box(0), box(70, DOG))
    assert kinds_of(truth, [box(50, score=0.9)]) == (["localisation"], {1})


def test_crowds_excuse_their_class_and_are_not_missed() -> None:
    truth = truth_of(box(0, iscrowd=1, size=1000), box(2000))
    inside, other = box(300, score=0.9), box(300, DOG, score=0.9)
    assert kinds_of(truth, [inside, other]) == ([None, "background"], {1})


def test_images_and_the_limit_of_100() -> None:
    truth = truth_of(box(0), num_images=2)
    elsewhere = [box(0, image=1, score=0.9)]
    assert kinds_of(truth, elsewhere) == (["background"], {0})
    many = [box(500, score=0.9) for _ in range(100)] + [box(0, score=0.1)]
    diagnosis = diagnose(as_ground_truth(truth), as_detections(many))
    assert diagnosis.detections.to_coco() == many[:100] and diagnosis.missed.tolist() == [True]


def test_fixed_detections_by_hand() -> None:
    truth = as_ground_truth(truth_of(box(0), box(1000, DOG)))
    near, nearer, wrong = box(50, score=0.9), box(40, score=0.7), box(20, DOG, score=0.8)
    detections = [nearer, near, wrong]  # all three are near the cat
    diagnosis = diagnose(truth, as_detections(detections))
    assert names_of(diagnosis) == ["localisation", "localisation", "classification"]

    def fixed_by(*kinds: str) -> list[dict]:
        return fixed(truth, diagnosis, kinds)[1].to_coco()

    assert fixed(truth, diagnosis, set())[0].to_coco() == truth.to_coco()
    assert fixed_by() == detections
    # The higher score is the cat's now, the other would be its duplicate.
    fixed_cat = near | {"bbox": [0, 0, 100, 100]}
    assert fixed_by("localisation") == [fixed_cat, wrong]
    right_class = wrong | {"bbox": [0, 0, 100, 100], "category_id": CAT}
    assert fixed_by("classification") == [nearer, near, right_class]
    assert fixed_by(*KINDS) == [fixed_cat]
    without = fixed(truth, diagnosis, {"missed"})[0].to_coco()["annotations"]
    assert [annotation["category_id"] for annotation in without] == [CAT]


def test_an_object_that_is_found_is_not_taken_again() -> None:
    truth = as_ground_truth(truth_of(box(0)))
    diagnosis = diagnose(truth, as_detections([box(0, score=0.5), box(50, score=0.9)]))
    assert names_of(diagnosis) == [None, "localisation"]
    assert fixed(truth, diagnosis, {"localisation"})[1].to_coco() == [box(0, score=0.5)]


def test_gains_by_hand() -> None:
    """There are four cats and, by descending score, a detection of the background, a correct one, a
    badly localised one and a duplicate of the correct one; two cats are missed. COCO's AP is the
    mean over the recalls 0, 0.01 ... 1 of the best precision at that recall or a higher one.
    """
    truth = truth_of(box(0), box(1000), box(2000), box(3000))
    detections = [
        box(500, score=0.9),
        box(0, score=0.8),
        box(1050, score=0.7),
        box(10, score=0.6),
    ]
    truth["categories"] = truth["categories"][1:]
    split = error_split(truth, detections)
    # The precision is 1/2 up to recall 1/4, which is 26 of the 101 recalls.
    assert split.ap50 == pytest.approx(26 * 0.5 / 101)
    assert split.counts == dict(zip(KINDS, (0, 1, 0, 1, 1, 2), strict=True))
    # Without the background detection the precision is 1 up to recall 1/4.
    assert split.gains["background"] == pytest.approx(26 / 101 - split.ap50)
    # With a corrected box, ranks 2 and 3 are true positives: the precision is 2/3 up to recall 1/2.
    assert split.gains["localisation"] == pytest.approx(51 * (2 / 3) / 101 - split.ap50)
    # The duplicate has the lowest score: it does not lower the precision at any recall reached.
    assert split.gains["duplicate"] == pytest.approx(0)
    # Without the two missed objects the precision is 1/2 up to recall 1/2.
    assert split.gains["missed"] == pytest.approx(51 * 0.5 / 101 - split.ap50)
    assert split.gains["classification"] == split.gains["both"] == 0


def test_a_class_that_is_missed_altogether() -> None:
    truth = truth_of(box(0), box(1000, DOG))
    split = error_split(truth, [box(0, score=0.5)])
    assert split.ap50 == pytest.approx(0.5) and split.gains["missed"] == pytest.approx(0.5)
    assert error_split(truth, []).gains["missed"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_fixing_everything_leaves_nothing_wrong(seed: int) -> None:
    content, entries = random_set(seed)
    truth, detections = as_ground_truth(content), as_detections(entries)
    diagnosis = diagnose(truth, detections)
    assert all(diagnosis.counts().values())  # the case has all kinds
    after = coco_metrics(*fixed(truth, diagnosis, set(KINDS)))
    assert after.summary["AP50"] == pytest.approx(1, abs=1e-12)
    # Correcting one kind never lowers AP50, and never makes it perfect.
    split = error_split(truth, detections)
    assert all(0 <= gain < 1 - split.ap50 for gain in split.gains.values())
    assert split.ap50 == coco_metrics(truth, detections).summary["AP50"]
    assert truth.is_crowd.any()


def test_nothing_to_be_found_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no object to detect"):
        error_split(truth_of(box(0, iscrowd=1)), [])
