"""The assembled detector compared with torchvision's own."""

import pytest
import torch
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detector.config import conventions
from detector.model.faster_rcnn import faster_rcnn
from detector.model.resnet import make_deformable, placement, resnet

TORCHVISIONS = dict(  # the values of fasterrcnn_resnet50_fpn
    num_classes=90,
    conventions=conventions("torchvision"),
    neck="fpn",
    fpn_channels=256,
    trainable_layers=3,
    anchor_sizes=[32, 64, 128, 256, 512],
    aspect_ratios=[0.5, 1.0, 2.0],
    rpn_channels=256,
    rpn_pre_nms_top_n_train=2000,
    rpn_pre_nms_top_n_test=1000,
    rpn_top_n_train=2000,
    rpn_top_n_test=1000,
    rpn_batch_size=256,
    roi_pool="align",
    mask_start=1.0,
    box_batch_size=512,
    box_head_channels=1024,
    score_threshold=0.05,
    nms="hard",
    nms_iou=0.5,
    nms_sigma=0.5,
    detections_per_image=100,
    min_size=800,
    max_size=1333,
)
SMALL = TORCHVISIONS | dict(min_size=96, max_size=160, score_threshold=0.0)


def build(stages: str, *, name: str = "resnet50", **values) -> FasterRCNN:
    body = resnet(name=name, norm="frozen_batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    names = placement(body, stages=stages, last_layers=None)
    make_deformable(body, names, modulated=True, offset_groups=1, mask_start=1.0)
    return faster_rcnn(body, **values)


def test_parameters_are_those_of_torchvision() -> None:
    model = build("none", **TORCHVISIONS)
    # torchvision publishes 41,755,286 for fasterrcnn_resnet50_fpn. This does not count the frozen
    # norm layers of the backbone, which have no parameters here either.
    assert sum(parameter.numel() for parameter in model.parameters()) == 41_755_286
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert {k: v.shape for k, v in model.state_dict().items() if "num_batches" not in k} == {
        k: v.shape for k, v in theirs.state_dict().items() if "num_batches" not in k
    }


@pytest.mark.parametrize(
    ("stages", "name"),
    [
        ("none", "resnet50"),
        *(("c3-c5", name) for name in ("resnet50", "resnext50_32x4d", "wide_resnet50_2")),
        pytest.param("c3-c5", "resnext101_32x8d", marks=pytest.mark.slow),
    ],
)
def test_detections_are_those_of_torchvision(stages: str, name: str) -> None:
    torch.manual_seed(2)
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=3)
    theirs = FasterRCNN(backbone, 6, min_size=96, max_size=160, box_score_thresh=0.0).eval()
    for key, tensor in theirs.state_dict().items():
        if key.endswith("bn3.weight"):
            tensor.mul_(0.2)  # otherwise activations grow without bound over 16 blocks
    ours = build(stages, name=name, **SMALL | dict(num_classes=5)).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not [key for key in missing if ".conv_offset." not in key]
    assert not [key for key in unexpected if not key.endswith("num_batches_tracked")]
    images = [torch.rand(3, 120, 90), torch.rand(3, 70, 130)]
    with torch.no_grad():
        for actual, expected in zip(ours(images), theirs(images), strict=True):
            assert len(expected["scores"]) > 10
            torch.testing.assert_close(actual["scores"], expected["scores"], rtol=0, atol=1e-4)
            assert torch.equal(actual["labels"], expected["labels"])
            torch.testing.assert_close(actual["boxes"], expected["boxes"], rtol=0, atol=0.05)


@pytest.mark.parametrize("height, width", [(2, 3000), (3000, 1), (1, 480)])
def test_a_shorter_side_does_not_vanish(height: int, width: int) -> None:
    model = build("none", **SMALL).eval()
    image = torch.rand(3, height, width)
    assert min(model.transform([image])[0].image_sizes[0]) == 1
    with torch.no_grad():
        (result,) = model([image])
    assert (result["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_images_that_torchvision_can_resize_are_resized_alike() -> None:
    ours = build("none", **SMALL).transform.eval()
    theirs = GeneralizedRCNNTransform(96, 160, ours.image_mean, ours.image_std).eval()
    for height, width in ((20, 3000), (300, 2), (7, 7)):
        image = torch.rand(3, height, width)
        assert torch.equal(ours([image])[0].tensors, theirs([image])[0].tensors)


def test_training_takes_images_as_they_come() -> None:
    # In evaluation images are resized, and boxes are in the pixels of the given image.
    model = build("none", **SMALL)
    sizes = {}
    model.transform.register_forward_hook(
        lambda module, inputs, output: sizes.update({model.training: output[0].image_sizes})
    )
    images = [torch.rand(3, 48, 64)]
    targets = [{"boxes": torch.tensor([[4.0, 8.0, 30.0, 40.0]]), "labels": torch.tensor([7])}]
    losses = model.train()(images, targets)
    assert sorted(losses) == [
        "loss_box_reg",
        "loss_classifier",
        "loss_objectness",
        "loss_rpn_box_reg",
    ]
    with torch.no_grad():
        (result,) = model.eval()(images)
    assert sizes == {True: [(48, 64)], False: [(96, 128)]}
    assert (result["boxes"] <= torch.tensor([64, 48, 64, 48])).all()


def test_trainable_layers() -> None:
    model = build("c3-c5", **TORCHVISIONS)
    frozen = {
        name.split(".")[2]
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.body") and not parameter.requires_grad
    }
    assert frozen == {"conv1", "layer1"}
    with pytest.raises(ValueError, match="model.trainable_layers=6"):
        build("none", **TORCHVISIONS | dict(trainable_layers=6))
    with pytest.raises(ValueError, match="model.anchor_sizes"):
        build("none", **TORCHVISIONS | dict(anchor_sizes=[32]))
