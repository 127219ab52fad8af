"""The evaluation within a run: every rank detects in its share, the first one scores."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from detector.data.dataset import DetectionDataset
from detector.data.loading import eval_loader
from detector.evaluation.inference import detect, progress, to_coco
from detector.evaluation.metrics import Metrics, score
from detector.training.distribution import Ranks
from detector.training.preemption import StopRequest


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
) -> tuple[dict[str, Any], Metrics]:
    """What summary.json says of the model, on every rank: the numbers that one rank would find. On
    the first, all that was measured as well.

    Each rank takes every n-th image. One that is told to leave stops at once; the others learn of
    it at the end of their share.

    Raises:
        Preempted: a rank was told to leave.
    """
    ranks.broadcast_buffers(model)
    share = Subset(val_set, range(ranks.rank, len(val_set), ranks.num_ranks))
    batches = progress(eval_loader(share, num_workers=num_workers), shown=ranks.is_first)
    found, seconds = detect(model, stop.before(batches), device=device, precision=precision)
    stop.raise_for(ranks)
    shares, total_seconds = ranks.gather(found), sum(ranks.all_gather(seconds))
    result: dict[str, Any] = {}
    metrics = Metrics({}, {})
    if ranks.is_first:
        places = (divmod(index, ranks.num_ranks) for index in range(len(val_set)))
        in_order = [shares[rank][number] for number, rank in places]
        metrics = score(metric, val_set.ground_truth(), to_coco(in_order, val_set.category_ids))
        result = {
            "metrics": metrics.summary,
            "per_class": metrics.per_class,
            "seconds_per_image": total_seconds / len(val_set),
        }
    return ranks.broadcast(result), metrics
