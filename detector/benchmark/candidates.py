"""The networks that are compared, each with its optimizer and the batch that it trains on."""

from dataclasses import dataclass

import torch
import torchvision
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from detector.builders.model import build_model
from detector.builders.training import build_optimizer
from detector.config import CONFIGS, parse_train
from detector.model.memory_format import training_memory_format
from detector.model.resnet import convolutions_3x3
from detector.schema import TrainConfig

CANDIDATES = ("ours", "ours deformable", "torchvision", "torchvision deformable")
SIZE = 512  # pixels
BATCH = 2
NUM_BOXES = 8  # per image
NUM_CLASSES = 80
OFFSET = 2.0  # standard deviation of the offsets, in pixels


@dataclass(frozen=True)
class Candidate:
    """A model, its optimizer and the batch that it trains on."""

    model: FasterRCNN
    optimizer: Optimizer
    images: list[Tensor]
    targets: list[dict[str, Tensor]]

    def step(self, dtype_name: str) -> dict[str, Tensor]:
        """Run one training step and return its losses in float32."""
        device, dtype = self.images[0].device.type, getattr(torch, dtype_name)
        torch.manual_seed(0)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            losses = self.model(self.images, self.targets)
        losses = {name: value.float() for name, value in losses.items()}
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}


class TorchvisionDeformableConv2d(torchvision.ops.DeformConv2d):
    """A 3x3 deformable convolution v2, written as a user of torchvision would write it.

    It has the parameters of our layer, and its offset convolution has the same channel order. It
    always runs in float32, because on the CPU torchvision's operator supports neither bfloat16 nor
    autocast.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        channels, stride = conv.in_channels, conv.stride[0]
        super().__init__(channels, conv.out_channels, 3, stride=stride, padding=1, bias=False)
        self.conv_offset = nn.Conv2d(channels, 3 * 9, 3, stride=stride, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map the input of shape (N, C, H, W) to an output of shape (N, O, Ho, Wo)."""
        with torch.autocast(input.device.type, enabled=False):
            input = input.float()
            offset, logits = self.conv_offset(input).split([18, 9], dim=1)
            return super().forward(input, offset, 2 * logits.sigmoid())


def build(name: str, device: str, size: int) -> Candidate:
    """Build a candidate on images of `size` x `size` pixels.

    Candidates of ours and torchvision's have equal weights.

    Args:
        name: one of `CANDIDATES`.
    """
    who, *how = name.split()
    deform = "c3-c5_v2" if how else "none"
    images, targets = batch(device, size)
    frozen = config(deform, "frozen_batch")
    model = ours(frozen) if who == "ours" else torchvisions(deformable=bool(how))
    model.load_state_dict(initial_state(deform, [image.cpu() for image in images]))
    model.train().to(device)
    if who == "ours":
        channels = frozen.model.fpn_channels
        model.to(
            memory_format=training_memory_format(
                torch.device(device), fpn_channels=channels, min_size=size
            )
        )
    optimizer = build_optimizer(
        model,
        frozen.schedule,
        frozen.deform.offset_lr_multiplier,
        frozen.model.roi_offset_lr_multiplier,
    )
    return Candidate(model, optimizer, images, targets)


def config(deform: str, norm: str) -> TrainConfig:
    """Compose the configuration of a ResNet-50-FPN without pretrained weights and of SGD with a
    learning rate of 0.
    """
    choices = ["model=resnet50_fpn", f"deform={deform}", "schedule=1x"]
    values = ["model.weights=null", f"model.norm={norm}", "schedule.lr=0"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return parse_train(compose("train", overrides=choices + values))


def ours(config: TrainConfig) -> FasterRCNN:
    """Build our detector."""
    return build_model(config.model, config.deform, config.data.transform, NUM_CLASSES)


def torchvisions(deformable: bool) -> FasterRCNN:
    """Build torchvision's detector, which does not resize the images, as ours does not either."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    if deformable:
        for name in convolutions_3x3(backbone.body, ["c3", "c4", "c5"]):
            parent, _, child = name.rpartition(".")
            layer = TorchvisionDeformableConv2d(backbone.body.get_submodule(name))
            setattr(backbone.body.get_submodule(parent), child, layer)
    return FasterRCNN(backbone, NUM_CLASSES + 1, _skip_resize=True)


def initial_state(deform: str, images: list[Tensor]) -> dict[str, Tensor]:
    """Return a state dict of random weights whose batch norm statistics are those of the images and
    whose offsets have a standard deviation of `OFFSET` pixels.

    With offsets of zero every deformable convolution would read its input in order, which is faster
    than in a trained network.
    """
    torch.manual_seed(0)
    model = ours(config(deform, "batch"))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # use the mean over all batches; here there is one
        if name.endswith(".conv_offset"):
            # The input is the ReLU of a normalised tensor, so its mean square is 1/2.
            nn.init.normal_(module.weight, std=OFFSET / (module.weight[0].numel() / 2) ** 0.5)
    with torch.no_grad():
        model.backbone(model.transform(images)[0].tensors)
    return model.state_dict()


def batch(device: str, size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images of noise, and targets whose boxes have sides between an eighth and a half of
    the image's side.
    """
    rng = torch.Generator().manual_seed(0)
    images = [torch.rand(3, size, size, generator=rng).to(device) for _ in range(BATCH)]
    targets = []
    for _ in range(BATCH):
        sides = size * (1 / 8 + 3 / 8 * torch.rand(NUM_BOXES, 2, generator=rng))
        corners = (size - sides) * torch.rand(NUM_BOXES, 2, generator=rng)
        labels = torch.randint(1, NUM_CLASSES + 1, (NUM_BOXES,), generator=rng)
        boxes = torch.cat([corners, corners + sides], dim=1)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device)})
    return images, targets
