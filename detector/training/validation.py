"""The evaluation within a run: every rank detects in its share, the first one scores."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Subset

from detector.data.dataset import DetectionDataset
from detector.data.loading import eval_loader
from detector.evaluation.columns import Detections
from detector.evaluation.inference import detect, progress, to_detections
from detector.evaluation.metrics import Metrics, score
from detector.evaluation.offset_sizes import OffsetSizes
from detector.training.distribution import Ranks
from detector.training.preemption import StopRequest


class Validation(NamedTuple):
    """What an evaluation found; on ranks other than the first, the summary alone.

    Attributes:
        summary: what summary.json says of the model.
        metrics: all that was measured.
        detections: of all images, in their order.
        offsets: of the deformable layers, over all images.
    """

    summary: dict[str, Any]
    metrics: Metrics
    detections: Detections
    offsets: OffsetSizes


def validate(
    model: nn.Module,
    val_set: DetectionDataset,
    metric: str,
    *,
    ranks: Ranks,
    device: torch.device,
    precision: torch.dtype,
    num_workers: int,
    stop: StopRequest,
) -> Validation:
    """Detect and score: the numbers are those that one rank would find.

    Each rank takes every n-th image. If one is told to leave, all stop after the image they are at.

    Raises:
        Preempted: a rank was told to leave.
    """
    ranks.broadcast_buffers(model)
    share = Subset(val_set, range(ranks.rank, len(val_set), ranks.num_ranks))
    batches = progress(eval_loader(share, num_workers=num_workers), shown=ranks.is_first)
    sizes, offsets = OffsetSizes(), OffsetSizes()
    with sizes.watching(model):
        found, seconds = detect(
            model, stop.before(batches, ranks), device=device, precision=precision
        )
    stop.raise_for(ranks)
    shares, total_seconds = ranks.gather(found), sum(ranks.all_gather(seconds))
    for of_rank in ranks.gather(sizes):
        offsets.add(of_rank)
    result: dict[str, Any] = {}
    metrics = Metrics({}, {})
    detections = to_detections([], val_set.category_ids)
    if ranks.is_first:
        places = (divmod(index, ranks.num_ranks) for index in range(len(val_set)))
        in_order = [shares[rank][number] for number, rank in places]
        detections = to_detections(in_order, val_set.category_ids)
        metrics = score(metric, val_set.ground_truth(), detections)
        result = {
            "metrics": metrics.summary,
            "per_class": metrics.per_class,
            "seconds_per_image": total_seconds / len(val_set),
        }
    return Validation(ranks.broadcast(result), metrics, detections, offsets)
