"""The learning rate of each step: a linear warm-up, then a decay in steps or along a cosine."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

WARMUP_START = 1e-3  # the first factor of the warm-up, as in detectron2 and mmdetection


def lr_schedule(
    optimizer: Optimizer,
    *,
    warmup_steps: int,
    num_steps: int,
    milestones: list[int] | None,
    gamma: float,
) -> LambdaLR:
    """Return a schedule that scales every parameter group's base rate; step it once per step.

    Args:
        warmup_steps: the number of steps in which the scale grows linearly from 1/1000 of the
            decayed rate to all of it.
        num_steps: the length of the cosine.
        milestones: the steps at which the rate is multiplied by `gamma`. With None the rate
            follows a cosine that ends at zero after `num_steps`.
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
