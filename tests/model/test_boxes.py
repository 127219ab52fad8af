"""Under autocast, boxes are as exact as without."""

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.model.faster_rcnn import faster_rcnn
from detector.model.resnet import resnet

SIZES, RATIOS = [16, 32, 64, 128, 256], [0.5, 2.0]
AUTOCAST = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return faster_rcnn(
        resnet(name="resnet10", norm="batch", c5_dilation=1),
        num_classes=2,
        fpn_channels=8,
        trainable_layers=5,
        anchor_sizes=SIZES,
        aspect_ratios=RATIOS,
        rpn_top_n_train=100,
        rpn_top_n_test=100,
        rpn_batch_size=32,
        box_batch_size=32,
        box_head_channels=8,
        score_threshold=0.0,
        detections_per_image=20,
        min_size=64,
        max_size=2048,
    )


def coarsest_anchors(width: int) -> np.ndarray:
    """The anchors (A, 4) of p6, 64 pixels apart, of an image 64 pixels high; Ren et al. 2015."""
    boxes = []
    for x in range(0, width, 64):
        for ratio in RATIOS:
            h, w = SIZES[-1] * np.sqrt(ratio), SIZES[-1] / np.sqrt(ratio)
            # torchvision rounds the corners of the anchor that is centred on (0, 0).
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
        torch.nn.init.zeros_(parameter)  # every proposal is its anchor
    width = 2048
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        (result,) = model.eval()([torch.rand(3, 64, width)])
    expected = coarsest_anchors(width)
    np.testing.assert_array_equal(seen["anchors"][-len(expected) :].numpy(), expected)
    # Anchors are whole pixels here, most of them odd: nothing that a rounding would leave alone.
    clipped = seen["anchors"].clamp(min=0)
    clipped[:, 0::2].clamp_(max=width)
    clipped[:, 1::2].clamp_(max=64)
    differences = (seen["proposals"][:, None] - clipped).abs().amax(dim=2).amin(dim=1)
    assert len(differences) > 50 and differences.max() < 1e-3
    assert result["boxes"].dtype == result["scores"].dtype == torch.float32


@AUTOCAST
def test_a_narrow_object_far_from_the_corner(model: torch.nn.Module, dtype: torch.dtype) -> None:
    # In bfloat16 its edges are both 1800, and its width zero.
    box = torch.tensor([[1800.25, 10.0, 1801.75, 40.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1])}]
    with torch.autocast("cpu", dtype=dtype):
        losses = model.train()([torch.rand(3, 64, 1984)], targets)
    assert all(loss.isfinite() for loss in losses.values()), losses
