"""The confusion matrix of a detector: which classes its detections give to objects.

K: classes.
"""

from dataclasses import dataclass

import numpy as np

from detector.analysis.errors.diagnosis import pairs_of_images
from detector.evaluation.coco_matches import assign, top_detections
from detector.evaluation.columns import Detections, GroundTruth, look_up_images_and_classes


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        names: the names of the K classes, in the order of their ids.
        counts: int64 (K + 1, K + 1). Rows are the true classes, and the background in the last row.
            Columns are the predicted classes, and missed objects in the last column. The row of a
            class sums to the number of its objects, and the column of a class to the number of its
            detections. Crowds, and detections that match a crowd, are not counted.
    """

    names: tuple[str, ...]
    counts: np.ndarray


def confusion(
    ground_truth: GroundTruth, detections: Detections, *, iou: float, min_score: float
) -> Confusion:
    """Match detections with objects of any class, and count the pairs of classes.

    In order of falling score, each detection takes the object with the highest IoU among those that
    no earlier detection has taken; the last one wins a tie. A detection that takes no object but
    matches a crowd, of any class, is not counted.

    Args:
        iou: the smallest IoU at which a detection matches an object, in (0, 1]. For a crowd, the
            intersection is divided by the detection's own area instead of the union.
        min_score: the lowest score of a detection that is counted.
    """
    num_classes, is_crowd = len(ground_truth.names), ground_truth.is_crowd
    seen = detections.select(detections.scores >= min_score)
    images, classes = look_up_images_and_classes(ground_truth, seen)
    kept, ranks = top_detections(images, seen.scores, most=len(seen))
    ranks = ranks[np.argsort(kept)]
    pairs = pairs_of_images(ground_truth, seen, images, iou)
    matches = assign(pairs, ranks, np.array([iou]), is_crowd, is_crowd)[0]

    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    found = (matches >= 0) & ~np.append(is_crowd, False)[matches]
    np.add.at(counts, (ground_truth.classes[matches[found]], classes[found]), 1)
    np.add.at(counts, (num_classes, classes[matches < 0]), 1)
    left = ~is_crowd
    left[matches[found]] = False
    np.add.at(counts, (ground_truth.classes[left], num_classes), 1)
    return Confusion(ground_truth.names, counts)
