"""The samples of anchors and proposals, compared with torchvision's sampler."""

from typing import Any

import pytest
import torch
from small import small_detector
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from detector.model.resnet import resnet
from detector.model.sampling import SeededSampler, use_seeded_samplers

# Positives (1 or more), negatives (0) and others (-1): many of each, few positives, few negatives,
# and others only.
LABELS = [
    torch.tensor([1] * 30 + [0] * 50 + [-1] * 20)[torch.randperm(100)],
    torch.tensor([2, 0] + [0] * 60),
    torch.tensor([3] * 9 + [0] * 2),
    torch.tensor([-1] * 5),
]


def sampler(seeds: list[int | None], *, stream: int = 0) -> SeededSampler:
    result = SeededSampler(batch_size_per_image=16, positive_fraction=0.5, stream=stream)
    result.seeds = seeds
    return result


def as_lists(masks: tuple[list[Tensor], list[Tensor]]) -> list[list[list[int]]]:
    return [[mask.nonzero().flatten().tolist() for mask in part] for part in masks]


def test_without_seeds_it_samples_as_torchvision() -> None:
    torch.manual_seed(3)
    expected = as_lists(BalancedPositiveNegativeSampler(16, 0.5)(LABELS))
    torch.manual_seed(3)
    assert as_lists(sampler([None] * 4)(LABELS)) == expected


def test_what_is_sampled() -> None:
    positives, negatives = as_lists(sampler([1, 2, 3, 4])(LABELS))
    assert [len(p) for p in positives] == [8, 1, 8, 0]
    assert [len(n) for n in negatives] == [8, 15, 2, 0]
    for labels, positive, negative in zip(LABELS, positives, negatives, strict=True):
        assert (labels[positive] >= 1).all() and (labels[negative] == 0).all()


def test_an_image_is_sampled_alike_in_any_batch() -> None:
    seeds = [5, 2**64 - 1, 0, 9]
    positives, negatives = as_lists(sampler(seeds)(LABELS))
    for index, (labels, seed) in enumerate(zip(LABELS, seeds, strict=True)):
        torch.manual_seed(index)
        assert as_lists(sampler([seed])([labels])) == [[positives[index]], [negatives[index]]]
    assert as_lists(sampler([6])(LABELS[:1]))[0] != [positives[0]]
    assert as_lists(sampler([5], stream=1)(LABELS[:1]))[0] != [positives[0]]


def test_every_candidate_is_as_likely() -> None:
    """In 1000 draws of 8 from 30, each is expected 267 times, with a standard deviation of 14."""
    counts = torch.zeros(100)
    for seed in range(1000):
        ((positive,), _) = sampler([seed])(LABELS[:1])
        counts += positive
    drawn = counts[LABELS[0] >= 1]
    assert drawn.min() > 267 - 5 * 14 and drawn.max() < 267 + 5 * 14


def test_half_of_the_anchors_and_a_quarter_of_the_proposals_are_positive() -> None:
    model: Any = nn.Module()
    model.rpn, model.roi_heads = nn.Module(), nn.Module()
    use_seeded_samplers(model, rpn_batch_size=16, box_batch_size=8)
    for part, expected in ((model.rpn, [8, 8]), (model.roi_heads, [2, 6])):
        part.fg_bg_sampler.seeds = [3]
        masks = part.fg_bg_sampler([torch.tensor([1] * 50 + [0] * 50)])
        assert [int(mask.sum()) for (mask,) in masks] == expected


@pytest.mark.parametrize("by_keyword", [False, True])
def test_the_model_hands_out_its_targets_seeds(by_keyword: bool) -> None:
    torch.manual_seed(0)
    model = small_detector(
        resnet(name="resnet10", norm="group", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False),
        rpn_pre_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_top_n_train=50,
        rpn_top_n_test=50,
        rpn_batch_size=16,
        score_threshold=0.05,
        max_size=64,
    )
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    box = {"boxes": torch.tensor([[8.0, 8.0, 30.0, 40.0]]), "labels": torch.tensor([1])}

    def losses(order: list[int], seeds: list[int] | None) -> dict[str, float]:
        targets = [box | ({"seed": seeds[i]} if seeds else {}) for i in order]
        batch = [images[i] for i in order]
        result = model(images=batch, targets=targets) if by_keyword else model(batch, targets)
        return {name: value.item() for name, value in result.items()}

    first = losses([0, 1], [7, 8])
    assert losses([0, 1], [7, 8]) == first  # other random numbers were drawn since
    assert losses([1, 0], [7, 8]) == pytest.approx(first, rel=1e-5)
    assert losses([0, 1], [7, 9]) != first
    assert losses([0, 1], None) != losses([0, 1], None)
    model.eval()
    assert len(model(images)) == 2
