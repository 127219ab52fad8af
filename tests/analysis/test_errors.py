"""Kinds of errors and their cost in AP, compared with cases worked out by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector import entry
from detector.analysis.errors import __main__ as errors
from detector.analysis.errors.confusion import confusion
from detector.analysis.errors.diagnosis import KINDS, Diagnosis, diagnose, error_split, mended
from detector.evaluation.coco import coco_metrics
from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.entries import EvaluationError

CAT, DOG = 2, 4


def truth_of(*annotations: dict[str, Any], num_images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": number} for number in range(num_images)],
        "annotations": list(annotations),
        "categories": [{"id": DOG, "name": "dog"}, {"id": CAT, "name": "cat"}],
    }


def box(x: float, category: int = CAT, *, image: int = 0, size: float = 100, **more: Any) -> dict:
    """Return a square box at (x, 0). Two squares of equal size that are shifted by a fraction s of
    their side have an IoU of (1 - s) / (1 + s).
    """
    bbox = [x, 0, size, size]
    return {"image_id": image, "category_id": category, "bbox": bbox} | more


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


def test_what_mending_makes_of_the_detections() -> None:
    truth = as_ground_truth(truth_of(box(0), box(1000, DOG)))
    near, nearer, wrong = box(50, score=0.9), box(40, score=0.7), box(20, DOG, score=0.8)
    detections = [nearer, near, wrong]  # all three are near the cat
    diagnosis = diagnose(truth, as_detections(detections))
    assert names_of(diagnosis) == ["localisation", "localisation", "classification"]

    def mended_by(*kinds: str) -> list[dict]:
        return mended(truth, diagnosis, kinds)[1].to_coco()

    assert mended(truth, diagnosis, set())[0].to_coco() == truth.to_coco()
    assert mended_by() == detections
    # The corrected detection with the higher score keeps the cat; the other is its duplicate.
    mended_cat = near | {"bbox": [0, 0, 100, 100]}
    assert mended_by("localisation") == [mended_cat, wrong]
    right_class = wrong | {"bbox": [0, 0, 100, 100], "category_id": CAT}
    assert mended_by("classification") == [nearer, near, right_class]
    assert mended_by(*KINDS) == [mended_cat]
    without = mended(truth, diagnosis, {"missed"})[0].to_coco()["annotations"]
    assert [annotation["category_id"] for annotation in without] == [CAT]


def test_an_object_that_is_found_is_not_taken_again() -> None:
    truth = as_ground_truth(truth_of(box(0)))
    diagnosis = diagnose(truth, as_detections([box(0, score=0.5), box(50, score=0.9)]))
    assert names_of(diagnosis) == [None, "localisation"]
    assert mended(truth, diagnosis, {"localisation"})[1].to_coco() == [box(0, score=0.5)]


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


def random_set(seed: int) -> tuple[dict[str, Any], list[dict]]:
    """Return objects close together, some of them crowds, and detections with all kinds of errors,
    many with equal scores.
    """
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for _ in range(60):
        place = {"image_id": int(rng.integers(4)), "category_id": int(rng.choice([CAT, DOG]))}
        bbox = [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(20, 100, 2).tolist()]
        crowd = int(rng.random() < 0.1)
        annotations.append(place | {"bbox": bbox, "iscrowd": crowd})
        for _ in range(rng.integers(4)):
            near = (np.array(bbox) + rng.normal(0, 10, 4)).clip(5).tolist()
            category = int(rng.choice([CAT, DOG]))
            score = float(rng.integers(1, 9) / 10)
            detections.append(place | {"category_id": category, "bbox": near, "score": score})
    detections.append(box(5000, score=0.5))
    return truth_of(*annotations, num_images=4), detections


@pytest.mark.parametrize("seed", range(20))
def test_mending_everything_leaves_nothing_wrong(seed: int) -> None:
    content, entries = random_set(seed)
    truth, detections = as_ground_truth(content), as_detections(entries)
    diagnosis = diagnose(truth, detections)
    assert all(diagnosis.counts().values())  # every kind of error occurs
    after = coco_metrics(*mended(truth, diagnosis, set(KINDS)))
    assert after.summary["AP50"] == pytest.approx(1, abs=1e-12)
    # Correcting one kind never lowers AP50, and never makes it perfect.
    split = error_split(truth, detections)
    assert all(0 <= gain < 1 - split.ap50 for gain in split.gains.values())
    assert split.ap50 == coco_metrics(truth, detections).summary["AP50"]
    assert truth.is_crowd.any()


# ---- the confusion matrix ----------------------------------------------------------------------


def test_confusion_by_hand() -> None:
    truth = as_ground_truth(
        truth_of(
            *(box(0), box(1000, DOG), box(2000, DOG), box(0, image=1)),
            *(box(5000, DOG, iscrowd=1, size=900), box(3000, CAT)),
            num_images=2,
        )
    )
    detections = as_detections(
        [
            box(20, score=0.9),  # cat -> cat
            box(10, DOG, score=0.8),  # closer, but the cat is taken already: background -> dog
            box(1000, CAT, score=0.7),  # dog -> cat
            box(2000, DOG, score=0.49),  # below min_score: this dog is missed
            box(5100, CAT, score=0.9),  # in a crowd: not counted
            box(3050, CAT, score=0.9),  # IoU 0.33: background -> cat, and a cat is missed
        ]
    )
    result = confusion(truth, detections, iou=0.5, min_score=0.5)
    assert result.names == ("cat", "dog")
    assert result.counts.tolist() == [[1, 0, 2], [1, 0, 1], [1, 1, 0]]
    result = confusion(truth, detections, iou=0.3, min_score=0.4)
    assert result.counts.tolist() == [[2, 0, 1], [1, 1, 0], [0, 1, 0]]
    nothing = confusion(truth, as_detections([]), iou=0.5, min_score=0.5)
    assert nothing.counts.tolist() == [[0, 0, 3], [0, 0, 2], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_confusion_counts_everything_once(seed: int) -> None:
    truth, detections = random_set(seed)
    truth["annotations"] = [one for one in truth["annotations"] if not one["iscrowd"]]
    columns = as_ground_truth(truth), as_detections(detections)
    counts = confusion(*columns, iou=0.5, min_score=0.3).counts
    for number, category in enumerate((CAT, DOG)):
        of_class = [one for one in truth["annotations"] if one["category_id"] == category]
        assert counts[number].sum() == len(of_class)
        seen = [d for d in detections if d["category_id"] == category and d["score"] >= 0.3]
        assert counts[:, number].sum() == len(seen)
    assert counts[-1, -1] == 0


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    truth = truth_of(box(0), box(1000, DOG))
    truth["categories"][0]["name"] = "dog|wolf"
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([box(0, score=0.9), box(0, DOG, score=0.8)]))
    return [
        f"detections={tmp_path / 'found.json'}",
        f"annotations={tmp_path / 'gt.json'}",
        f"output={tmp_path / 'new' / 'report'}",
    ]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["errors.py", *arguments])
    try:
        entry.run(errors.main)
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_report(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command(monkeypatch, *files) == 0
    folder = tmp_path / "new" / "report"
    tables = (folder / "errors.md").read_text()
    assert capsys.readouterr().out == tables
    lines = tables.splitlines()
    # The dog detection is at the cat, which another detection has found.
    assert lines[0] == "AP50 50.0"
    assert "| classification | 1 | 0.0 |" in lines and "| missed | 1 | 50.0 |" in lines
    assert "| dog\\|wolf | 0 | 0 | 1 |" in lines and "| background | 0 | 1 | 0 |" in lines
    content = json.loads((folder / "errors.json").read_text())
    assert content["AP50"] == pytest.approx(0.5)
    assert content["errors"]["missed"] == {"count": 1, "gain": pytest.approx(0.5)}
    assert content["confusion"]["counts"] == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert content["curves"]["cat"] == pytest.approx([1] * 101)
    events = EventAccumulator(str(folder))
    events.Reload()
    names = {"precision_recall", "confusion", "errors"}
    assert set(events.Tags()["images"]) == names
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize(
    "change, code, culprit",
    [
        ("detections=nowhere.json", 1, "nowhere.json"),
        ("iou=0", 2, "iou=0"),
        ("iou=much", 2, "iou"),
        ("nonsense=1", 2, "nonsense"),
    ],
)
def test_errors_are_one_line(
    change: str,
    code: int,
    culprit: str,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert command(monkeypatch, *files, change) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert culprit in line
    assert command(monkeypatch, *files[:2]) == 2
    assert "output" in capsys.readouterr().err
    assert command(monkeypatch, *files[:2], "output=/dev/null/x") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/dev/null/x" in line


def test_nothing_to_be_found_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no object to detect"):
        error_split(truth_of(box(0, iscrowd=1)), [])
