"""The confusion matrix beside a case worked out by hand."""

import pytest
from error_cases import CAT, DOG, box, random_set, truth_of

from detector.analysis.errors.confusion import confusion
from detector.evaluation.coco_format import as_detections, as_ground_truth


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
            box(20, score=0.9),  # a cat is a cat
            box(10, DOG, score=0.8),  # the cat is taken: background -> dog, though it is closer
            box(1000, CAT, score=0.7),  # a dog is called a cat
            box(2000, DOG, score=0.49),  # below the score: that dog is missed
            box(5100, CAT, score=0.9),  # in a crowd
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
