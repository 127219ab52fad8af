"""Defines the sample format that all data sets share, and the dataset that yields samples.

A reader (`coco.py`, `voc.py`) parses annotations into image and object entries, `build_dataset` in
`records.py` turns these into one `Record` per image, and `DetectionDataset` decodes the image of a
record into a sample:

    image     uint8    (3, H, W)   RGB
    boxes     float32  (M, 4)      xyxy in pixels, 0 <= x1 < x2 <= W, 0 <= y1 < y2 <= H
    labels    int64    (M,)        1..K, the index into `classes` plus one; 0 is the background
    area      float32  (M,)        area of the mask, or of the box if there is none, in pixels^2
    iscrowd   bool     (M,)        crowd (COCO) or difficult (VOC): not a training target, and
                                   ignored in evaluation
    image_id  int
    seed      int                  random seed of this sample in this epoch; in training only

M: number of objects in the image (may be 0), K: number of classes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.data.errors import DatasetError, Fault
from detector.data.images import read_image


class Sample(TypedDict):
    """One image with its objects. The module's docstring gives shapes and units."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    area: Tensor
    iscrowd: Tensor
    image_id: int
    seed: NotRequired[int]


@dataclass(frozen=True)
class Record:
    """The annotations of one image that is not decoded yet.

    Boxes and areas have float64 precision, which the metrics need.
    """

    image_id: int
    path: Path
    height: int
    width: int
    boxes: np.ndarray  # float64 (M, 4) xyxy
    labels: np.ndarray  # int64 (M,)
    area: np.ndarray  # float64 (M,)
    iscrowd: np.ndarray  # bool (M,)


class DetectionDataset(Dataset[Sample]):
    """The images of a data set with their boxes, in the order of the records.

    Attributes:
        records: one `Record` per image.
        classes: the K class names; label `l` means `classes[l - 1]`.
        category_ids: the K ids that these classes have in COCO-format files.
        faults: what the reader left out, clipped or found unusual.
    """

    def __init__(
        self,
        *,
        records: list[Record],
        classes: tuple[str, ...],
        category_ids: tuple[int, ...],
        faults: Sequence[Fault] = (),
    ) -> None:
        self.records = records
        self.classes = classes
        self.category_ids = category_ids
        self.faults = faults

    def __len__(self) -> int:
        return len(self.records)

    def first(self, number: int) -> "DetectionDataset":
        """Return the data set of the first `number` images."""
        return self._of(self.records[:number])

    def share(self, rank: int, num_ranks: int) -> "DetectionDataset":
        """Return the data set of every `num_ranks`-th image, beginning with image `rank`."""
        return self._of(self.records[rank::num_ranks])

    def without(self, image_ids: Iterable[int | None]) -> "DetectionDataset":
        """Return the data set without the images that have these ids."""
        unwanted = set(image_ids)
        return self._of([record for record in self.records if record.image_id not in unwanted])

    def _of(self, records: list[Record]) -> "DetectionDataset":
        """Return a data set of some of the records, with the faults of all of them."""
        return DetectionDataset(
            records=records,
            classes=self.classes,
            category_ids=self.category_ids,
            faults=self.faults,
        )

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        try:
            image = read_image(record.path, size=(record.height, record.width))
        except DatasetError as error:
            raise DatasetError(f"{error}; image id {record.image_id}") from error
        return Sample(
            image=image,
            boxes=torch.from_numpy(record.boxes.astype(np.float32)),
            labels=torch.from_numpy(record.labels.copy()),
            area=torch.from_numpy(record.area.astype(np.float32)),
            iscrowd=torch.from_numpy(record.iscrowd.copy()),
            image_id=record.image_id,
        )

    def describe(self) -> str:
        """Return one line with the numbers of images, objects and classes and the image sizes."""
        num_objects = sum(len(record.boxes) for record in self.records)
        num_crowds = sum(int(record.iscrowd.sum()) for record in self.records)
        sides = [side for record in self.records for side in (record.width, record.height)]
        ignored = f" ({num_crowds} crowd or difficult)" if num_crowds else ""
        return (
            f"{len(self)} images of {min(sides)} to {max(sides)} pixels, "
            f"{num_objects} objects{ignored}, {len(self.classes)} classes"
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the classes, image ids, image sizes and objects, in hexadecimal.

        Pixels and file paths do not enter it.
        """
        digest = hashlib.sha256(repr((self.classes, self.category_ids)).encode())
        for record in self.records:
            digest.update(repr((record.image_id, record.height, record.width)).encode())
            for values in (record.boxes, record.labels, record.area, record.iscrowd):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations as a COCO-format dictionary, with annotation ids 1, 2, ..."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            images.append(
                {
                    "id": record.image_id,
                    "file_name": record.path.name,
                    "height": record.height,
                    "width": record.width,
                }
            )
            for box, label, area, crowd in zip(
                record.boxes.tolist(),
                record.labels.tolist(),
                record.area.tolist(),
                record.iscrowd.tolist(),
                strict=True,
            ):
                x1, y1, x2, y2 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "category_id": self.category_ids[label - 1],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}
