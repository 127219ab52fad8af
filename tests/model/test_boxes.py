"""Anchors, proposals and detections: precision under autocast, and the frameworks' conventions."""

import math

import numpy as np
import pytest
import torch
from small import small_detector
from torch import Tensor

from detector.model.boxes import BoxDecoder
from detector.model.resnet import resnet
from detector.model.roi_pooling import BoxPooling

SIZES, RATIOS = [16, 32, 64, 128, 256], [0.5, 2.0]
AUTOCAST = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return small_detector(
        resnet(name="resnet10", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False),
        anchor_sizes=SIZES,
        aspect_ratios=RATIOS,
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_top_n_train=100,
        rpn_top_n_test=100,
        rpn_batch_size=32,
        box_batch_size=32,
        detections_per_image=20,
        max_size=2048,
    )


def coarsest_anchors(width: int) -> np.ndarray:
    """Compute the anchors (A, 4) of p6 (Ren et al. 2015): a stride and an image height of 64."""
    boxes = []
    for x in range(0, width, 64):
        for ratio in RATIOS:
            h, w = SIZES[-1] * np.sqrt(ratio), SIZES[-1] / np.sqrt(ratio)
            # torchvision rounds the corners of the anchors centred on (0, 0) before it moves them.
            boxes.append([x + round(-w / 2), round(-h / 2), x + round(w / 2), round(h / 2)])
    return np.array(boxes, dtype=np.float32)


@AUTOCAST
def test_anchors_and_proposals_are_not_rounded(model: torch.nn.Module, dtype: torch.dtype) -> None:
    seen: dict[str, Tensor] = {}
    model.rpn.anchor_generator.register_forward_hook(
        lambda module, args, output: seen.update(anchors=output[0])
    )
    model.rpn.register_forward_hook(
        lambda module, args, output: seen.update(proposals=output[0][0])
    )
    for parameter in model.rpn.head.bbox_pred.parameters():
        torch.nn.init.zeros_(parameter)  # every proposal then equals its anchor
    width = 1280  # beyond 1024, where bfloat16 can only hold multiples of 8
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        (result,) = model.eval()([torch.rand(3, 64, width)])
    expected = coarsest_anchors(width)
    np.testing.assert_array_equal(seen["anchors"][-len(expected) :].numpy(), expected)
    # Anchors are whole pixels here, most of them odd numbers, so rounding to bfloat16 would show.
    clipped = seen["anchors"].clamp(min=0)
    clipped[:, 0::2].clamp_(max=width)
    clipped[:, 1::2].clamp_(max=64)
    differences = (seen["proposals"][:, None] - clipped).abs().amax(dim=2).amin(dim=1)
    assert len(differences) > 50 and differences.max() < 1e-3
    assert result["boxes"].dtype == result["scores"].dtype == torch.float32


@AUTOCAST
def test_a_narrow_object_far_from_the_corner(model: torch.nn.Module, dtype: torch.dtype) -> None:
    # In bfloat16 both of its vertical edges would be 1800, and its width zero.
    box = torch.tensor([[1800.25, 10.0, 1801.75, 40.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1])}]
    with torch.autocast("cpu", dtype=dtype):
        losses = model.train()([torch.rand(3, 64, 1984)], targets)
    assert all(loss.isfinite() for loss in losses.values()), losses


def test_no_proposals(model: torch.nn.Module) -> None:
    """With NaN weights, as after training diverged, nothing is detected and nothing fails."""
    model.eval().rpn.nms_thresh = 0.7
    for parameter in model.rpn.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with torch.no_grad():
        (found,) = model([torch.rand(3, 64, 64)])
    assert found["boxes"].shape == (0, 4) and found["scores"].shape == (0,)


# ---- Conventions for which the checkpoints of test_parity.py give the same results ---------------


@pytest.mark.parametrize(
    ("rule", "just_below"), [("torchvision", 1), ("detectron2", 0), ("mmdetection", 1)]
)
def test_the_level_of_a_box(rule: str, just_below: int) -> None:
    """A box of 224 pixels belongs to p4 and one of half that size to p3 (Lin et al. 2017).

    The rules differ for a box that is smaller than 112 pixels by a rounding error.
    """
    sizes = [1.0, 56.0, 111.9, 112 - 3e-5, 112.0, 224.0, 448.0, 5000.0]
    boxes = torch.tensor([[0.0, 0.0, size, size] for size in sizes])
    levels = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    pooling = BoxPooling(
        channels=1,
        levels=levels,
        aligned=True,
        sampling_ratio=0,
        level_rule=rule,
        kind="align",
        mask_start=1.0,
    )
    assert pooling.levels(boxes).tolist() == [0, 0, 0, just_below, 1, 2, 3, 3]


@pytest.mark.parametrize(("clamps", "width"), [(True, 62.5 / 62.5), (False, 62.5 * math.exp(-10))])
def test_a_change_of_size_is_clamped_downwards(clamps: bool, width: float) -> None:
    decoder = BoxDecoder((10.0, 10.0, 5.0, 5.0), clamp_shrinking=clamps)
    deltas = torch.tensor([[0.0, 0.0, 5 * -10.0, 5 * 10.0]])  # growing is clamped in any case
    (box,) = decoder.decode_single(deltas, torch.tensor([[0.0, 0.0, 62.5, 62.5]]))
    assert box[2] - box[0] == pytest.approx(width, abs=1e-4)
    assert box[3] - box[1] == pytest.approx(62.5 * 62.5, rel=1e-4)


@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
def test_a_second_box_of_an_object(model: torch.nn.Module, nms: str) -> None:
    """Two boxes with an IoU of 0.6 and scores of 0.9 and 0.8, and the same for another class."""
    heads = model.eval().roi_heads
    heads.nms, heads.nms_sigma, heads.score_thresh = nms, 0.6, 0.25
    proposals = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 24.0]] * 2)
    scores = torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.8, 0.2], [0.0, 0.1, 0.9], [0.0, 0.2, 0.8]])
    logits = (scores + 1e-12).log()
    (boxes,), (found,), (labels,) = heads.postprocess_detections(
        logits, torch.zeros(4, 12), [proposals], [(64, 64)]
    )
    second = {"hard": [], "soft_linear": [0.8 * 0.4], "soft_gaussian": [0.8 * math.exp(-0.6)]}
    expected = [0.9, 0.9, *second[nms] * 2]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert labels.bincount(minlength=3).tolist() == [0, len(expected) // 2, len(expected) // 2]
    assert (boxes[2:, 3] == 24).all()
    heads.detections_per_img = 1
    (_,), (found,), _ = heads.postprocess_detections(
        logits, torch.zeros(4, 12), [proposals], [(64, 64)]
    )
    assert len(found) == 1


@pytest.mark.parametrize(("least", "kept"), [(1e-2, 1), (1e-12, 2), (0.0, 3)])
def test_the_smallest_detections(model: torch.nn.Module, least: float, kept: int) -> None:
    """The smallest sides are those of torchvision, detectron2 and mmdetection, in this order."""
    heads = model.eval().roi_heads
    heads.min_side, heads.score_thresh = least, 0.5
    proposals = torch.tensor(
        [[0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 20.005, 9.0], [30.0, 0.0, 30.0, 9.0]]
    )
    logits = torch.tensor([[0.0, 9.0, 0.0]]).expand(3, 3)
    boxes, _, _ = heads.postprocess_detections(logits, torch.zeros(3, 12), [proposals], [(64, 64)])
    assert len(boxes[0]) == kept
