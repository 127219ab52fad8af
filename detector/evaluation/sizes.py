"""One detector at several image sizes, and on mirrored images, whose findings are merged."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import batched_nms

MERGE_IOU = 0.5  # from which on boxes of a class are one object

Result = dict[str, Tensor]


class AtSizes(nn.Module):
    """Detects as the model does, takes images and returns results as `faster_rcnn.py` says.

    What all passes found in an image is cut by NMS per class, and as many boxes as the model gives
    are kept. A single pass is returned as it is: its NMS was the model's own.

    Args:
        model: in evaluation mode when this is called; its own size is left as it was.
        min_sizes: pixels of the shorter side; the limit of the longer one grows with it.
        flip: whether each size is run on the mirrored images as well.

    Raises:
        ValueError: there is no size, or one below 1.
    """

    def __init__(self, model: FasterRCNN, *, min_sizes: list[int], flip: bool) -> None:
        super().__init__()
        if not min_sizes or min(min_sizes) < 1:
            raise ValueError(f"expected sizes of at least 1 pixel, got {min_sizes}")
        self.model = model
        self.min_sizes = min_sizes
        self.flip = flip

    @torch.no_grad()
    def forward(self, images: list[Tensor]) -> list[Result]:
        passes = [
            detect_at(self.model, images, min_size=min_size, flip=flip)
            for min_size in self.min_sizes
            for flip in ([False, True] if self.flip else [False])
        ]
        if len(passes) == 1:
            return passes[0]
        limit = self.model.roi_heads.detections_per_img
        return [merge(results, limit=limit) for results in zip(*passes, strict=True)]


def detect_at(
    model: FasterRCNN, images: list[Tensor], *, min_size: int, flip: bool
) -> list[Result]:
    """Run the model at another size, on mirrored images if `flip`; boxes fit the given images."""
    transform = model.transform
    own = transform.min_size, transform.max_size
    # torchvision takes the last of several sizes in evaluation
    transform.max_size = round(own[1] * min_size / own[0][-1])
    transform.min_size = (min_size,)
    try:
        results: list[Result] = model([image.flip(-1) if flip else image for image in images])
    finally:
        transform.min_size, transform.max_size = own
    if not flip:
        return results
    return [
        result | {"boxes": mirrored(result["boxes"], width=image.shape[-1])}
        for image, result in zip(images, results, strict=True)
    ]


def mirrored(boxes: Tensor, *, width: int) -> Tensor:
    """Boxes (D, 4) xyxy in the mirror image of an image of that width."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def merge(results: tuple[Result, ...], *, limit: int) -> Result:
    """One result of several of one image, by descending score, `limit` boxes at most."""
    boxes, scores, labels = (
        torch.cat([result[key] for result in results]) for key in ("boxes", "scores", "labels")
    )
    # NMS in float32: autocast may leave scores in a type of less precision than boxes
    kept = batched_nms(boxes.float(), scores.float(), labels, MERGE_IOU)[:limit]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
