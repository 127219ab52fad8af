"""The kind of error of each detection, and what each kind costs.

The kinds are those of Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, in the order in which their code asks. A detection that matches no object at an
IoU of 0.5, by the rules of COCO, and that no crowd excuses, is an error of

    localisation    the best IoU with an object of its class is at least 0.1, and below 0.5
    classification  that with an object of another class is at least 0.5
    duplicate       that with an object of its class is at least 0.5: another has matched that one
    background      no object has an IoU above 0.1
    both            it is none of these: neither the class nor the place is right

and an object is missed if no detection matches it, and none would by the mending below.

Mending all errors of a kind alone means: for localisation and classification, the detection takes
the box and the class of the object that the IoU was with; if that one is matched already, or a
mended detection of a higher score takes it, the detection is left out. For duplicate, background
and both, it is left out. For missed, the object is left out; a class without any other is then no
part of the mean. The gain is the AP50 of what results less the AP50 of before.

    D: detections of an image, G: objects, C: crowds, K: classes
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from detector.evaluation.coco_matches import choose, coco_matches, highest, ious
from detector.evaluation.columns import (
    AnyDetections,
    AnyGroundTruth,
    Detections,
    GroundTruth,
    as_detections,
    as_ground_truth,
    placed,
)
from detector.evaluation.entries import EvaluationError
from detector.evaluation.matches import Pairs, overlapping

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoUs; the paper's t_f and t_b


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What is wrong with each detection.

    Attributes:
        detections: those that are scored: of an image and class, the 100 of the highest scores; in
            the order in which they were given.
        kinds: int64 (D,), the place in `KINDS` of each one's error; -1: it is right, or a crowd
            excuses it.
        targets: int64 (D,), the position of the annotation that each would find if it were mended;
            -1 where it would be left out.
        missed: bool (G,), the annotations that are missed.
    """

    detections: Detections
    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray

    def counts(self) -> dict[str, int]:
        """Kind -> the number of its errors."""
        numbers = [int((self.kinds == place).sum()) for place in range(len(KINDS))]
        return dict(zip(KINDS, numbers, strict=True)) | {"missed": int(self.missed.sum())}


def diagnose(ground_truth: GroundTruth, detections: Detections) -> Diagnosis:
    """Find the errors of detections.

    Raises:
        EvaluationError: an image or category is not in the ground truth.
    """
    images, classes = placed(ground_truth, detections)
    num_classes = len(ground_truth.names)
    kept, ranks = highest(images * num_classes + classes, detections.scores)
    listed = np.argsort(kept)
    kept, ranks = kept[listed], ranks[listed]
    detections, images, classes = detections.of(kept), images[kept], classes[kept]
    pairs = pairs_of_images(ground_truth, detections, images, BACKGROUND)
    is_own = classes[pairs.detections] == ground_truth.classes[pairs.objects]
    is_near, is_crowd = pairs.ious >= FOREGROUND, ground_truth.is_crowd
    matches = choose(pairs.of(is_own & is_near), ranks, np.array([FOREGROUND]), is_crowd, is_crowd)[
        0
    ]
    is_wrong = matches < 0

    is_object = ~is_crowd[pairs.objects]
    own_iou, own = _best(pairs.of(is_own & is_object), len(kept))
    other_iou, other = _best(pairs.of(~is_own & is_object), len(kept))
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
    targets[~np.append(left, False)[targets]] = -1  # the last is that of -1, no target
    missed = left.copy()
    missed[targets[targets >= 0]] = False
    return Diagnosis(detections, kinds, targets, missed)


def pairs_of_images(
    ground_truth: GroundTruth, detections: Detections, images: np.ndarray, least: float
) -> Pairs:
    """Detections and annotations, of whatever class, of one image and an IoU of at least that."""
    near = partial(ious, detections.boxes, ground_truth.boxes, ground_truth.is_crowd)
    return overlapping(images, ground_truth.images, near, least)


def _best(pairs: Pairs, num_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest IoU (D,) of each detection, 0 where it has no pair, and the annotation (D,) that
    it is with, of equals the first, -1 for none.
    """
    values, objects = np.zeros(num_detections), np.full(num_detections, -1)
    order = np.lexsort((-pairs.objects, pairs.ious, pairs.detections))  # the last stays
    values[pairs.detections[order]] = pairs.ious[order]
    objects[pairs.detections[order]] = pairs.objects[order]
    return values, objects


def mended(
    ground_truth: GroundTruth, diagnosis: Diagnosis, kinds: Collection[str]
) -> tuple[GroundTruth, Detections]:
    """The ground truth and the detections, were it not for the errors of these kinds."""
    detections, targets = diagnosis.detections, diagnosis.targets
    is_mended = np.isin(diagnosis.kinds, [KINDS.index(kind) for kind in kinds])
    # Of those that would take an annotation the one of the highest score does, of equals the first.
    rivals = np.flatnonzero(is_mended & (targets >= 0))
    rivals = rivals[np.argsort(-detections.scores[rivals], kind="stable")]
    takers = rivals[np.unique(targets[rivals], return_index=True)[1]]
    category_ids, boxes = detections.category_ids.copy(), detections.boxes.copy()
    category_ids[takers] = ground_truth.category_ids[ground_truth.classes[targets[takers]]]
    boxes[takers] = ground_truth.boxes[targets[takers]]
    stays = ~is_mended
    stays[takers] = True
    mended_detections = replace(detections, category_ids=category_ids, boxes=boxes).of(stays)
    if "missed" in kinds:
        ground_truth = ground_truth.of(~diagnosis.missed)
    return ground_truth, mended_detections


@dataclass(frozen=True)
class ErrorSplit:
    """How many errors there are of each kind, and what they cost.

    Attributes:
        ap50: 0..1, before anything is mended.
        counts: kind -> the number of its errors.
        gains: kind -> the AP50 that mending all of them, and nothing else, would add; 0..1.
    """

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]


def error_split(ground_truth: AnyGroundTruth, detections: AnyDetections) -> ErrorSplit:
    """Split the errors by kind and score the detections with each mended.

    Args:
        ground_truth, detections: COCO-format, see `columns.py`.

    Raises:
        EvaluationError: one of the two breaks the format, they do not belong together, or there is
            no object to be found.
    """
    ground_truth, detections = as_ground_truth(ground_truth), as_detections(detections)
    before = coco_matches(ground_truth, detections).summary["AP50"]
    if before is None:
        raise EvaluationError("ground truth: it has no object to be found, and no errors then")
    diagnosis = diagnose(ground_truth, detections)
    gains = {
        kind: _ap50(*mended(ground_truth, diagnosis, {kind})) - before if count else 0.0
        for kind, count in diagnosis.counts().items()
    }
    return ErrorSplit(before, diagnosis.counts(), gains)


def _ap50(ground_truth: GroundTruth, detections: Detections) -> float:
    """0..1; 1 where all objects were missed and left out."""
    ap50 = coco_matches(ground_truth, detections).summary["AP50"]
    return 1.0 if ap50 is None else ap50
