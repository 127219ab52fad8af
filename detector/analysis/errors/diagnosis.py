"""Finds the kind of error of each wrong detection, and the objects that are missed.

The kinds are those of Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020. A detection is wrong if it matches neither an object nor a crowd of its class at
an IoU of 0.5, by the rules of COCO. The kind of its error is the first in this list whose condition
holds, in the order of the paper's code:

    localisation    The best IoU with an object of its class is at least 0.1 and below 0.5.
    classification  The best IoU with an object of another class is at least 0.5.
    duplicate       The best IoU with an object of its class is at least 0.5, but another detection
                    has matched this object.
    background      No object of any class has an IoU above 0.1.
    both            The best IoU with an object of another class is above 0.1 and below 0.5: both
                    the class and the box are wrong.

An object is missed if no detection matches it, and no detection with a localisation or
classification error would match it once its error is fixed.

D: detections that are scored, G: annotations, both of the whole data set.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from detector.evaluation.coco_matches import assign, ious, top_detections
from detector.evaluation.columns import Detections, GroundTruth, look_up_images_and_classes
from detector.evaluation.matches import Pairs, overlapping

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU thresholds: t_f and t_b of the paper


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The error of each detection, and the objects that are missed.

    Attributes:
        detections: the D detections that are scored: the 100 with the highest scores of each image
            and class, in the order in which they were given.
        kinds: int64 (D,), the index in `KINDS` of each detection's error; -1 for a detection that
            matches an object or a crowd.
        targets: int64 (D,), the index of the annotation that each detection would take if its error
            were fixed; -1 for a detection that is right, or that would be removed.
        missed: bool (G,), true for the objects that are missed.
    """

    detections: Detections
    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray

    def counts(self) -> dict[str, int]:
        """Return the number of errors of each kind."""
        numbers = [int((self.kinds == place).sum()) for place in range(len(KINDS))]
        return dict(zip(KINDS, numbers, strict=True)) | {"missed": int(self.missed.sum())}


def diagnose(ground_truth: GroundTruth, detections: Detections) -> Diagnosis:
    """Find the kind of error of each detection, and the objects that are missed.

    Raises:
        EvaluationError: the image or the category of a detection is not in the ground truth.
    """
    images, classes = look_up_images_and_classes(ground_truth, detections)
    num_classes = len(ground_truth.names)
    kept, ranks = top_detections(images * num_classes + classes, detections.scores)
    listed = np.argsort(kept)
    kept, ranks = kept[listed], ranks[listed]
    detections, images, classes = detections.select(kept), images[kept], classes[kept]
    pairs = pairs_of_images(ground_truth, detections, images, BACKGROUND)
    is_own = classes[pairs.detections] == ground_truth.classes[pairs.objects]
    is_near, is_crowd = pairs.ious >= FOREGROUND, ground_truth.is_crowd
    near_own = pairs.select(is_own & is_near)
    matches = assign(near_own, ranks, np.array([FOREGROUND]), is_crowd, is_crowd)[0]
    is_wrong = matches < 0

    is_object = ~is_crowd[pairs.objects]
    own_iou, own = _best(pairs.select(is_own & is_object), len(kept))
    other_iou, other = _best(pairs.select(~is_own & is_object), len(kept))
    kinds = np.select(
        [
            ~is_wrong,
            (own_iou >= BACKGROUND) & (own_iou < FOREGROUND),
            other_iou >= FOREGROUND,
            own_iou >= FOREGROUND,
            other_iou <= BACKGROUND,
        ],
        [
            -1,
            KINDS.index("localisation"),
            KINDS.index("classification"),
            KINDS.index("duplicate"),
            KINDS.index("background"),
        ],
        KINDS.index("both"),
    )
    targets = np.full(len(kept), -1)
    for kind, best in (("localisation", own), ("classification", other)):
        is_kind = kinds == KINDS.index(kind)
        targets[is_kind] = best[is_kind]
    left = ~is_crowd
    left[matches[~is_wrong]] = False
    targets[~np.append(left, False)[targets]] = -1  # index -1, no target, reads the False
    missed = left.copy()
    missed[targets[targets >= 0]] = False
    return Diagnosis(detections, kinds, targets, missed)


def pairs_of_images(
    ground_truth: GroundTruth, detections: Detections, images: np.ndarray, least: float
) -> Pairs:
    """Return all pairs of a detection and an annotation that overlap in one image, of any classes.

    Args:
        images: (D,), the index of each detection's image.
        least: the smallest IoU of a pair.
    """
    near = partial(ious, detections.boxes, ground_truth.boxes, ground_truth.is_crowd)
    return overlapping(images, ground_truth.images, near, least)


def _best(pairs: Pairs, num_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's highest IoU (D,), and the index of the annotation (D,) that has it.

    They are 0 and -1 for a detection without a pair. The first annotation wins a tie.
    """
    values, objects = np.zeros(num_detections), np.full(num_detections, -1)
    order = np.lexsort((-pairs.objects, pairs.ious, pairs.detections))  # the best pair is last
    values[pairs.detections[order]] = pairs.ious[order]
    objects[pairs.detections[order]] = pairs.objects[order]
    return values, objects
