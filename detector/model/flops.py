"""Floating point operations (FLOPs) of a detector."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN


@torch.no_grad()
def forward_flops(model: FasterRCNN, height: int, width: int) -> int:
    """Count the floating point operations of detection in one image; a multiply-add counts as two.

    `torch.utils.flop_counter` counts matrix products and convolutions, and deformable convolutions
    like plain ones. The sampling in RoI pooling is not counted, because torch has a formula only
    for this project's operator and not for torchvision's. The image is blank: the number of
    proposals that the box head sees depends on the weights, but for most weights it is
    `rpn_top_n_test`.

    Args:
        height, width: the size of the image in pixels, before the model resizes it.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model([torch.zeros(3, height, width, device=device)])
    model.train(training)
    return counted_flops(counter)


def counted_flops(counter: FlopCounterMode) -> int:
    """Return the counted operations of all matrix products and convolutions."""
    pool = torch.ops.deform_roi_pool
    by_operator = counter.get_flop_counts()["Global"]
    return sum(n for name, n in by_operator.items() if name not in (pool.forward, pool.backward))
