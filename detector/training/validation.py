"""The evaluation within a run: each rank runs the detector on its share, the first rank scores."""

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
    """The results of an evaluation. On ranks other than the first, all but `summary` are empty.

    Attributes:
        summary: the metrics, those per class, and the seconds per image, for summary.json.
        metrics: all metrics and curves.
        detections: the detections in all images, in the order of the data set.
        offsets: the lengths of the deformable layers' offsets, over all images.
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
    """Evaluate a model; the metrics do not depend on the number of ranks.

    With n ranks, each one takes every n-th image. If any rank is asked to stop, all ranks stop
    between two images.

    Raises:
        Preempted: a rank was asked to stop.
    """
    ranks.broadcast_buffers(model)
    share = Subset(val_set, range(ranks.rank, len(val_set), ranks.num_ranks))
    batches = progress(eval_loader(share, num_workers=num_workers), shown=ranks.is_first)
    sizes, offsets = OffsetSizes(), OffsetSizes()
    with sizes.watching(model):
        found, seconds = detect(
            model, stop.until_stopped(batches, ranks), device=device, precision=precision
        )
    stop.raise_if_stopped(ranks)
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
