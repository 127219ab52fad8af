"""The evaluation within a run: each rank runs the detector on its share, the first rank scores."""

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from detector.data.dataset import DetectionDataset
from detector.data.loading import eval_loader
from detector.evaluation.columns import Detections
from detector.evaluation.inference import detect, in_order, progress, to_detections
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
    batch_size: int,
    num_workers: int,
    stop: StopRequest,
) -> Validation:
    """Evaluate a model; the metrics do not depend on the number of ranks.

    With n ranks, each one takes every n-th image. If any rank is asked to stop, all ranks stop
    between two batches.

    Args:
        batch_size: the largest number of images, of equal size, that a rank evaluates at once.

    Raises:
        Preempted: a rank was asked to stop.
        DatasetError, EvaluationError: as in `detect`.
    """
    ranks.broadcast_buffers(model)
    share = val_set.share(ranks.rank, ranks.num_ranks)
    loader = eval_loader(
        share,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    batches = progress(loader, num_images=len(share), shown=ranks.is_first)
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
        image_ids = (record.image_id for record in val_set.records)
        everything = in_order(chain.from_iterable(shares), image_ids)
        detections = to_detections(everything, val_set.category_ids)
        metrics = score(metric, val_set.ground_truth(), detections)
        result = {
            "metrics": metrics.summary,
            "per_class": metrics.per_class,
            "seconds_per_image": total_seconds / len(val_set),
        }
    return Validation(ranks.broadcast(result), metrics, detections, offsets)
