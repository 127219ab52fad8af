"""Random sampling of the anchors and proposals of each image that the losses are computed on.

torchvision samples with the global random generator, so that the sample of an image depends on the
batch it is in and on all earlier random numbers. Here the target of each image has a seed of its
own. The sample then does not depend on the number of processes, the batch size or a resume.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN


class SeededSampler:
    """Samples positives and negatives of each image, with at most a given fraction of positives.

    It replaces torchvision's `BalancedPositiveNegativeSampler` and samples from the same
    distribution.

    Args:
        batch_size_per_image: how many positives and negatives are sampled per image.
        positive_fraction: the largest fraction of them that may be positives.
        stream: a number that differs between the samplers of a model. They share the seeds of the
            images, and with it their samples are different.
    """

    def __init__(self, *, batch_size_per_image: int, positive_fraction: float, stream: int) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.stream = stream
        self.seeds: list[int | None] = []  # one for each image of the batch

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return boolean masks (A,) of the sampled positives and negatives of each image.

        Args:
            labels: (A,) for each image: at least 1 for a positive, 0 for a negative, and negative
                numbers for candidates that are never sampled.
        """
        masks = [self._sample(*pair) for pair in zip(labels, self.seeds, strict=True)]
        return [positive for positive, _ in masks], [negative for _, negative in masks]

    def _sample(self, labels: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
        generator = None
        if seed is not None:
            generator = torch.Generator(labels.device).manual_seed(seed ^ self.stream)
        max_positives = int(self.batch_size_per_image * self.positive_fraction)
        positives = _choose(labels >= 1, max_positives, generator)
        negatives = _choose(labels == 0, self.batch_size_per_image - len(positives), generator)
        masks = torch.zeros(2, len(labels), dtype=torch.bool, device=labels.device)
        masks[0, positives] = True
        masks[1, negatives] = True
        return masks[0], masks[1]


def _choose(candidates: Tensor, at_most: int, generator: torch.Generator | None) -> Tensor:
    """Return the indices of a random subset of the candidates, given as a boolean mask (A,)."""
    indices = torch.where(candidates)[0]
    order = torch.randperm(len(indices), generator=generator, device=indices.device)
    return indices[order[:at_most]]


def use_seeded_samplers(model: FasterRCNN, *, rpn_batch_size: int, box_batch_size: int) -> None:
    """Give the model samplers that take each image's seed from its target's `seed`.

    An image whose target has no seed is sampled as in torchvision. At most half of the anchors and
    a quarter of the proposals are positives, as in Ren et al. 2015.
    """
    model.rpn.fg_bg_sampler = SeededSampler(
        batch_size_per_image=rpn_batch_size, positive_fraction=0.5, stream=0
    )
    model.roi_heads.fg_bg_sampler = SeededSampler(
        batch_size_per_image=box_batch_size, positive_fraction=0.25, stream=1
    )
    model.register_forward_pre_hook(_hand_out_seeds, with_kwargs=True)


def _hand_out_seeds(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    images, targets = (*args, *kwargs.values(), None)[:2]
    seeds = [target.get("seed") for target in targets] if targets else [None] * len(images)
    model.rpn.fg_bg_sampler.seeds = model.roi_heads.fg_bg_sampler.seeds = seeds
