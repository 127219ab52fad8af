"""Ground truth and detections of a whole data set, stored as columns (NumPy arrays).

Everything that scores works on these columns. `coco_format.py` makes them of COCO-format content.

An annotation with `is_crowd` is ignored (a crowd in COCO, a difficult object in VOC): it does not
have to be detected, and a detection that matches it is neither a true nor a false positive.

I: images;  K: categories;  G: annotations;  D: detections.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.evaluation.entries import EvaluationError


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations of a data set, its images and its categories.

    Attributes:
        image_ids: int64 (I,), ascending.
        category_ids: int64 (K,), ascending.
        names: the names of the K categories.
        images: int64 (G,), the index of each annotation's image in `image_ids`.
        classes: int64 (G,), the index of each annotation's category in `category_ids`.
        boxes: float64 (G, 4) x, y, width, height in pixels.
        areas: float64 (G,) in square pixels.
        is_crowd: bool (G,), true for annotations that are ignored.
        entries: the entries of the list `images` in the given order, with file names and sizes.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    names: tuple[str, ...]
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    entries: list[dict[str, Any]]

    def select(self, chosen: np.ndarray) -> "GroundTruth":
        """Return some of the annotations, chosen by a mask (G,) or by indices, and all images."""
        return GroundTruth(
            self.image_ids,
            self.category_ids,
            self.names,
            self.images[chosen],
            self.classes[chosen],
            self.boxes[chosen],
            self.areas[chosen],
            self.is_crowd[chosen],
            self.entries,
        )

    def to_coco(self) -> dict[str, Any]:
        """Convert to COCO-format content.

        Annotations are numbered from 1, because pycocotools loses the matches of an annotation
        with the id 0 and confuses annotations with equal ids.
        """
        columns = (
            self.image_ids[self.images].tolist(),
            self.category_ids[self.classes].tolist(),
            self.boxes.tolist(),
            self.areas.tolist(),
            self.is_crowd.astype(int).tolist(),
            range(1, 1 + len(self.images)),
        )
        keys = ("image_id", "category_id", "bbox", "area", "iscrowd", "id")
        ids = zip(self.category_ids.tolist(), self.names, strict=True)
        return {
            "images": [dict(entry) for entry in self.entries],
            "annotations": [
                dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)
            ],
            "categories": [{"id": category_id, "name": name} for category_id, name in ids],
        }


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of a data set.

    Attributes:
        image_ids: int64 (D,), the ids themselves and not indices, unlike in `GroundTruth`.
        category_ids: int64 (D,), likewise.
        boxes: float64 (D, 4) x, y, width, height in pixels.
        scores: float64 (D,).
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, chosen: np.ndarray) -> "Detections":
        """Return some of the detections, chosen by a mask (D,) or by indices."""
        return Detections(
            self.image_ids[chosen],
            self.category_ids[chosen],
            self.boxes[chosen],
            self.scores[chosen],
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """Convert to COCO-format results."""
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        keys = ("image_id", "category_id", "bbox", "score")
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(keys, row, strict=True)) for row in rows]


AnyGroundTruth = GroundTruth | dict[str, Any]
AnyDetections = Detections | list[dict[str, Any]]


def look_up_images_and_classes(
    ground_truth: GroundTruth, detections: Detections, *, source: str = "detections"
) -> tuple[np.ndarray, np.ndarray]:
    """Look up the image and the category of each detection in the ground truth.

    Returns:
        The indices (D,) in `ground_truth.image_ids` and in `ground_truth.category_ids`.

    Raises:
        EvaluationError: an image or category is not in the ground truth.
    """
    return (
        indices_of(ground_truth.image_ids, detections.image_ids, "image_id", source),
        indices_of(ground_truth.category_ids, detections.category_ids, "category_id", source),
    )


def indices_of(ids: np.ndarray, wanted: np.ndarray, key: str, where: str) -> np.ndarray:
    """Return the index of each of `wanted` (N,) in the ascending `ids`.

    Args:
        key: image_id or category_id, for the message.
        where: the place of the list that `wanted` is from, for the message.

    Raises:
        EvaluationError: one of `wanted` is not in `ids`.
    """
    found = np.searchsorted(ids, wanted)
    is_known = np.append(ids, 0)[found] == wanted
    is_known &= found < len(ids)
    if not is_known.all():
        position = int(np.argmin(is_known))
        place = {"image_id": "images", "category_id": "categories"}[key]
        raise EvaluationError(
            f"{where}[{position}]: {key} {wanted[position]} is not in the ground truth's {place}"
        )
    return found
