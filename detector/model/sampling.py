"""Which anchors and proposals the losses look at: a random sample of each image.

torchvision draws it from the global generator, so that it depends on the batch that an image is in
and on everything drawn before. Here each image has a seed of its own, in its target: neither the
number of processes, nor the size of their batches, nor a resume changes its sample.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN


class SeededSampler:
    """Positives and negatives of each image, at most a fraction of them positive.

    In place of torchvision's `BalancedPositiveNegativeSampler`, from the same distribution.

    Args:
        batch_size_per_image: sampled.
        positive_fraction: of these, at most.
        stream: tells apart the samplers of one model, which have the same seeds.
    """

    def __init__(self, *, batch_size_per_image: int, positive_fraction: float, stream: int) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.stream = stream
        self.seeds: list[int | None] = []  # of the images of the batch

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (A,) of the positives and of the negatives, for each image.

        Args:
            labels: (A,) for each image: at least 1 for a positive, 0 for a negative, else neither.
        """
        masks = [self._sample(*pair) for pair in zip(labels, self.seeds, strict=True)]
        return [positive for positive, _ in masks], [negative for _, negative in masks]

    def _sample(self, labels: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
        generator = None
        if seed is not None:
            generator = torch.Generator(labels.device).manual_seed(seed ^ self.stream)
        max_positives = int(self.batch_size_per_image * self.positive_fraction)
        positives = _some(labels >= 1, max_positives, generator)
        negatives = _some(labels == 0, self.batch_size_per_image - len(positives), generator)
        masks = torch.zeros(2, len(labels), dtype=torch.bool, device=labels.device)
        masks[0, positives] = True
        masks[1, negatives] = True
        return masks[0], masks[1]


def _some(candidates: Tensor, at_most: int, generator: torch.Generator | None) -> Tensor:
    """The indices of a random subset of a mask (A,)."""
    indices = torch.where(candidates)[0]
    order = torch.randperm(len(indices), generator=generator, device=indices.device)
    return indices[order[:at_most]]


def sample_by_image(model: FasterRCNN, *, rpn_batch_size: int, box_batch_size: int) -> None:
    """Give the model samplers that take each image's seed from its target's `seed`.

    An image whose target has none is sampled as torchvision does it. The fractions of positives are
    those of Ren et al. 2015: a half of the anchors, a quarter of the proposals.
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
