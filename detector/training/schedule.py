"""The learning rate of each step: a linear warm-up, then steps or a cosine."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

WARMUP_START = 1e-3  # of the base rate, as detectron2 and mmdetection


def lr_schedule(
    optimizer: Optimizer,
    *,
    warmup_steps: int,
    num_steps: int,
    milestones: list[int] | None,
    gamma: float,
) -> LambdaLR:
    """A factor on every group's base rate, stepped once an optimizer step.

    Args:
        warmup_steps: the factor grows linearly from 1/1000 to what follows.
        milestones: steps at which the rate is multiplied by `gamma`; None is a cosine that ends
            at zero after `num_steps`.
    """

    def factor(step: int) -> float:
        if milestones is None:
            decayed = 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1)))
        else:
            decayed = gamma ** sum(step >= milestone for milestone in milestones)
        if step >= warmup_steps:
            return decayed
        return decayed * (WARMUP_START + (1 - WARMUP_START) * step / warmup_steps)

    return LambdaLR(optimizer, factor)
