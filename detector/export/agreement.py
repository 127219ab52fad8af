"""Compare the detections of an exported detector with those of the checkpoint's model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from detector import exit_codes

MAX_BOX, MAX_SCORE = 0.1, 1e-3  # tolerances: of box coordinates in pixels, of scores in 0..1

Found = dict[str, Tensor]  # boxes (D, 4), scores (D,), labels (D,)


class ExportError(ValueError):
    """Raised for a model that cannot be exported, or if the exported one detects something else."""

    exit_code = exit_codes.FAILED


@dataclass
class Agreement:
    """The largest differences between both detectors over all images.

    Attributes:
        images: the number of images.
        detections: the number of detections of the checkpoint's model.
        box: the largest difference of a box coordinate in pixels.
        score: the largest difference of a score.
        unmatched: the number of detections of either detector without a partner of the other.
    """

    images: int = 0
    detections: int = 0
    box: float = 0.0
    score: float = 0.0
    unmatched: int = 0

    @property
    def holds(self) -> bool:
        """True if the differences are within the tolerances.

        One detection in a hundred may lack a partner: if the IoU of two boxes is close to the
        threshold of NMS, rounding decides which of them is suppressed.
        """
        is_near = self.box <= MAX_BOX and self.score <= MAX_SCORE
        return is_near and self.unmatched <= self.detections // 100

    def describe(self) -> str:
        """Format the differences as one line."""
        alone = f", {self.unmatched} without a partner" if self.unmatched else ""
        return (
            f"{self.detections} detections in {self.images} images differ by at most "
            f"{self.box:.2g} pixels and {self.score:.2g} in score{alone}"
        )


@torch.no_grad()
def found_by(model: FasterRCNN, pixels: np.ndarray) -> Found:
    """Run the model on an image uint8 (H, W, 3)."""
    (found,) = model([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])
    return dict(found)


def agreement(
    model: FasterRCNN, exported: Callable[[np.ndarray], Found], images: list[np.ndarray]
) -> Agreement:
    """Compare the model and the exported detector on images uint8 (H, W, 3).

    A detection may be missing on one side if its score is within the tolerance of the score
    threshold or, in an image with as many detections as are kept, of the lowest score.
    """
    result = Agreement()
    for pixels in images:
        ours = found_by(model, pixels)
        theirs = exported(pixels)
        result.images += 1
        result.detections += len(ours["scores"])
        _compare(result, ours, theirs, model)
    return result


def _compare(result: Agreement, ours: Found, theirs: Found, model: FasterRCNN) -> None:
    free = set(range(len(theirs["scores"])))
    for box, score, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        alike = [i for i in free if theirs["labels"][i] == label]
        nearest = min(
            alike, key=lambda i: float((theirs["boxes"][i] - box).abs().max()), default=None
        )
        if nearest is not None and (theirs["boxes"][nearest] - box).abs().max() <= 1:
            free.remove(nearest)
            result.box = max(result.box, float((theirs["boxes"][nearest] - box).abs().max()))
            result.score = max(result.score, float((theirs["scores"][nearest] - score).abs()))
        elif not _is_borderline(float(score), ours, model):
            result.unmatched += 1
    result.unmatched += sum(
        not _is_borderline(float(theirs["scores"][i]), ours, model) for i in free
    )


def _is_borderline(score: float, ours: Found, model: FasterRCNN) -> bool:
    heads = model.roi_heads
    is_full = len(ours["scores"]) == heads.detections_per_img
    last = float(ours["scores"].min()) if is_full else heads.score_thresh
    return score <= last + MAX_SCORE
