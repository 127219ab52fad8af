"""Batch norm whose statistics and weights are constants."""

import torchvision
from torch import Tensor
from torch.nn.functional import batch_norm


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's layer as a single operator; it maps (N, C, H, W) to the same shape and dtype.

    torchvision's forward pass has seven operators, and turns bfloat16 features into float32 ones,
    which every following convolution under autocast has to convert back.
    """

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
