"""The backbone of Dai et al. 2017, section 4: no FPN, but a c5 that is as fine as c4.

    images           (B, 3, H, W)
    c4               (B, 1024, H / 16, W / 16), where proposals are looked for
    c5               (B, channels, H / 16, W / 16), which boxes are pooled from

c5 is dilated instead of strided (`resnet.py`), reduced to few channels by a 1x1 convolution, and
rectified. In the state dict the ResNet is `body`, as with an FPN, and that convolution `reduction`.
"""

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import ResNet


class DilatedBackbone(nn.Module):
    """c4, and c5 with its channels reduced.

    Args:
        body: its c5 is dilated.
        channels: of c5 afterwards; 256 in the paper.
    """

    def __init__(self, body: ResNet, channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(body, {"layer3": "c4", "layer4": "c5"})
        self.reduction = nn.Conv2d(body.fc.in_features, channels, kernel_size=1)
        nn.init.kaiming_uniform_(self.reduction.weight, a=1)  # as torchvision's FPN
        assert self.reduction.bias is not None
        nn.init.zeros_(self.reduction.bias)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W), normalised, to c4 and c5 by their names."""
        maps: dict[str, Tensor] = self.body(images)
        maps["c5"] = torch.relu(self.reduction(maps["c5"]))
        return maps
