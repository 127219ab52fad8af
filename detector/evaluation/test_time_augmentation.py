"""Test-time augmentation: detect at several image sizes and on mirrored images, and merge."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import batched_nms

MERGE_IOU = 0.5  # NMS drops a box that overlaps a better one of its class by more than this

Result = dict[str, Tensor]


class AtSizes(nn.Module):
    """Detects objects at several image sizes, and merges the detections of each image.

    Inputs and results are those of the model, see `faster_rcnn.py`. NMS per class merges the
    detections of all passes; at most as many are kept as the model returns for an image. The
    result of a single pass is returned unchanged, because the model has applied NMS already.

    Args:
        model: must be in evaluation mode when this module is called. Its own size is restored
            after each pass.
        min_sizes: lengths of the shorter image side in pixels. The limit of the longer side is
            scaled in proportion.
        flip: also run each size on the mirrored images.

    Raises:
        ValueError: `min_sizes` is empty, or one of them is below 1.
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
    """Run the model at another size, on mirrored images if `flip`.

    The boxes returned are in pixels of the given images, not of the mirrored ones.
    """
    transform = model.transform
    own = transform.min_size, transform.max_size
    # In evaluation mode, torchvision uses the last of several sizes.
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
    """Mirror boxes (D, 4) xyxy left to right in an image of the given width in pixels."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def merge(results: tuple[Result, ...], *, limit: int) -> Result:
    """Merge several results of one image into at most `limit` boxes, by descending score."""
    boxes, scores, labels = (
        torch.cat([result[key] for result in results]) for key in ("boxes", "scores", "labels")
    )
    # Run NMS in float32: under autocast, scores may have a lower precision than boxes.
    kept = batched_nms(boxes.float(), scores.float(), labels, MERGE_IOU)[:limit]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
