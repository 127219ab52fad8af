"""What objects were taken for.

K: classes.
"""

from dataclasses import dataclass

import numpy as np

from detector.analysis.errors.diagnosis import pairs_of_images
from detector.evaluation.coco_matches import choose, highest
from detector.evaluation.columns import Detections, GroundTruth, placed


@dataclass(frozen=True)
class Confusion:
    """What objects were taken for.

    Attributes:
        names: of the K classes, in the order of their ids.
        counts: int64 (K + 1, K + 1). Rows are the true class, the last one the background; columns
            the predicted class, the last one what was missed. A row of a class sums to its
            objects, a column of a class to its detections.
    """

    names: tuple[str, ...]
    counts: np.ndarray


def confusion(
    ground_truth: GroundTruth, detections: Detections, *, iou: float, min_score: float
) -> Confusion:
    """Match detections and objects of whatever class, by falling score: each takes the object with
    the highest IoU that is left, of equals the last. Those that take none and lie in a crowd, of
    whatever class, are not counted.

    Args:
        ground_truth, detections: as `diagnose` takes them.
        iou: from which on they match, above 0; of the detection's own area for a crowd.
        min_score: from which on a detection counts.
    """
    num_classes, is_crowd = len(ground_truth.names), ground_truth.is_crowd
    seen = detections.of(detections.scores >= min_score)
    images, classes = placed(ground_truth, seen)
    kept, ranks = highest(images, seen.scores, most=len(seen))
    ranks = ranks[np.argsort(kept)]
    pairs = pairs_of_images(ground_truth, seen, images, iou)
    matches = choose(pairs, ranks, np.array([iou]), is_crowd, is_crowd)[0]

    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    found = (matches >= 0) & ~np.append(is_crowd, False)[matches]
    np.add.at(counts, (ground_truth.classes[matches[found]], classes[found]), 1)
    np.add.at(counts, (num_classes, classes[matches < 0]), 1)
    left = ~is_crowd
    left[matches[found]] = False
    np.add.at(counts, (ground_truth.classes[left], num_classes), 1)
    return Confusion(ground_truth.names, counts)
