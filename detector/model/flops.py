"""How much a detector computes."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN


@torch.no_grad()
def forward_flops(model: FasterRCNN, height: int, width: int) -> int:
    """Floating point operations of detecting in one image, a multiplication and an addition each.

    Counted by `torch.utils.flop_counter`, which counts matrix products and convolutions,
    deformable ones as plain; the samples of RoI pooling, of which torch knows ours alone, are left
    out. The image is blank: how many proposals the box head sees is up to the
    weights, but for most they are `rpn_top_n_test`.

    Args:
        height, width: in pixels, as the image is before the model resizes it.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model([torch.zeros(3, height, width, device=device)])
    model.train(training)
    return products(counter)


def products(counter: FlopCounterMode) -> int:
    """The operations of all matrix products and convolutions that were counted."""
    pool = torch.ops.deform_roi_pool
    by_operator = counter.get_flop_counts()["Global"]
    return sum(n for name, n in by_operator.items() if name not in (pool.forward, pool.backward))
