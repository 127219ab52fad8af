"""The backbone of Dai et al. 2017, section 4: it has no FPN, but a c5 with the stride of c4.

    images           (B, 3, H, W)
    c4               (B, 1024, H / 16, W / 16), the input of the RPN
    c5               (B, channels, H / 16, W / 16), the map that RoI features are pooled from

c5 is dilated instead of strided (`resnet.py`). A 1x1 convolution reduces its channels, and a ReLU
follows. In the state dict the ResNet is called `body`, as with an FPN, and the 1x1 convolution is
called `reduction`.
"""

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import ResNet


class DilatedC5Backbone(nn.Module):
    """Computes c4, and c5 with fewer channels.

    Args:
        body: a ResNet with a dilated c5.
        channels: the number of channels that c5 is reduced to; 256 in the paper.
    """

    def __init__(self, body: ResNet, channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(body, {"layer3": "c4", "layer4": "c5"})
        self.reduction = nn.Conv2d(body.fc.in_features, channels, kernel_size=1)
        nn.init.kaiming_uniform_(self.reduction.weight, a=1)  # as in torchvision's FPN
        assert self.reduction.bias is not None
        nn.init.zeros_(self.reduction.bias)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of normalised images (B, 3, H, W), under the names `c4` and `c5`."""
        maps: dict[str, Tensor] = self.body(images)
        maps["c5"] = torch.relu(self.reduction(maps["c5"]))
        return maps
