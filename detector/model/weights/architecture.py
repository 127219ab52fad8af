"""Recognises the architecture of weights by their names and shapes, in terms of configs/."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from detector.model.resnet import STAGES
from detector.model.roi_pooling import ROI_SIZE
from detector.model.weights.files import WeightsError
from detector.model.weights.names import BODY, HEAD

# (has bottleneck blocks, number of blocks in each stage, shape of the first conv2 without its
# kernel) -> `model.backbone`
BACKBONES: dict[tuple[bool, tuple[int, ...], tuple[int, ...]], str] = {
    (False, (1, 1, 1, 1), (64, 64)): "resnet10",
    (False, (2, 2, 2, 2), (64, 64)): "resnet18",
    (False, (3, 4, 6, 3), (64, 64)): "resnet34",
    (True, (3, 4, 6, 3), (64, 64)): "resnet50",
    (True, (3, 4, 23, 3), (64, 64)): "resnet101",
    (True, (3, 4, 6, 3), (128, 4)): "resnext50_32x4d",
    (True, (3, 4, 23, 3), (256, 8)): "resnext101_32x8d",
    (True, (3, 4, 6, 3), (128, 128)): "wide_resnet50_2",
}
# (backbone, neck) -> the file in configs/model/, if it is not called BACKBONE_fpn
MODELS = {
    ("resnet10", "fpn"): "tiny",
    ("resnet50", "dc5"): "resnet50_dc5",
    ("resnet101", "dc5"): "resnet101_dc5",
}


@dataclass
class Architecture:
    """The architecture of a network. Values that a backbone alone does not determine are None.

    Attributes:
        backbone: as `model.backbone`.
        neck: as `model.neck`.
        deforms: `none`, `c3-c5_v1` and so on, like the names of the files in configs/deform/; or
            `last3_v1` and so on, if only the last 3x3 convolutions are deformable.
        offset_groups: as `deform.offset_groups`; 1 if no layer is deformable.
        fpn_channels, rpn_channels, roi_pool, box_head_channels: as in `model`.
        num_anchors: anchors per cell.
        num_classes: K, without the background.
        has_statistics: True for batch norm, frozen or not; False for group norm.
    """

    backbone: str
    neck: str | None
    deforms: str
    offset_groups: int
    fpn_channels: int | None
    rpn_channels: int | None
    roi_pool: str | None
    box_head_channels: int | None
    num_anchors: int | None
    num_classes: int | None
    has_statistics: bool

    @property
    def model(self) -> str:
        """The name of the file in configs/model/ that is closest to this network."""
        usual = MODELS.get((self.backbone, "fpn"), f"{self.backbone}_fpn")
        return MODELS.get((self.backbone, self.neck or "fpn"), usual)

    @property
    def modulated(self) -> bool:
        """Whether the deformable convolutions are v2."""
        return self.deforms.endswith("_v2")


def architecture(state: dict[str, Tensor], source: Path | str) -> Architecture:
    """Recognise the architecture of a state dict that has this project's names.

    Args:
        state: the state dict.
        source: what error messages call it, such as the path of its file.

    Raises:
        WeightsError: no configuration describes the architecture.
    """

    def rows(name: str) -> int | None:
        return len(state[name]) if name in state else None

    deforms, groups = _deformation(state, source)
    scores = rows(f"{HEAD}cls_score.weight")
    of_necks = {"fpn": "backbone.fpn.inner_blocks.0.0.weight", "dc5": "backbone.reduction.weight"}
    neck = next((neck for neck, name in of_necks.items() if name in state), None)
    return Architecture(
        backbone=_backbone(state, source),
        neck=neck,
        deforms=deforms,
        offset_groups=groups,
        fpn_channels=None if neck is None else rows(of_necks[neck]),
        rpn_channels=rows("rpn.head.conv.0.0.weight"),
        roi_pool=_roi_pool(state),
        box_head_channels=rows("roi_heads.box_head.fc6.weight"),
        num_anchors=rows("rpn.head.cls_logits.weight"),
        num_classes=None if scores is None else scores - 1,
        has_statistics=any(key.endswith("running_mean") for key in state),
    )


def _backbone(state: dict[str, Tensor], source: Path | str) -> str:
    blocks = [
        {int(found[1]) for key in state if (found := re.match(rf"{BODY}{layer}\.(\d+)\.", key))}
        for layer in STAGES.values()
    ]
    is_bottleneck = f"{BODY}layer1.0.conv3.weight" in state
    numbers = tuple(len(indices) for indices in blocks)
    first = state.get(f"{BODY}layer1.0.conv2.weight")
    shape = () if first is None else tuple(first.shape[:2])
    if (is_bottleneck, numbers, shape) not in BACKBONES:
        kind = "bottleneck" if is_bottleneck else "basic"
        raise WeightsError(
            f"{source} has a ResNet of {'-'.join(map(str, numbers))} {kind} blocks with a first "
            f"conv2 of shape {shape}: only {', '.join(BACKBONES.values())} are supported"
        )
    return BACKBONES[is_bottleneck, numbers, shape]


def _roi_pool(state: dict[str, Tensor]) -> str | None:
    """Return `model.roi_pool`: v1 predicts two numbers per bin, v2 three. None: no box head."""
    fc6 = state.get("roi_heads.box_head.fc6.weight")
    offsets = state.get("roi_heads.box_roi_pool.fc_offset.weight")
    if fc6 is None:
        return None
    if offsets is None:
        return "align"
    num_bins = ROI_SIZE**2
    return "deform_v1" if len(offsets) == 2 * num_bins else "deform_v2"


def _deformation(state: dict[str, Tensor], source: Path | str) -> tuple[str, int]:
    """Return `Architecture.deforms` and the number of offset groups."""
    suffix = ".conv_offset.weight"
    layers = [key.removesuffix(suffix) for key in state if key.endswith(suffix)]
    if not layers:
        return "none", 1
    kinds = {_version_and_groups(state[layer + suffix], source) for layer in layers}
    if len(kinds) > 1:
        raise WeightsError(
            f"{source} has deformable layers of different versions or offset groups, which is not "
            "supported"
        )
    ((version, groups),) = kinds
    return f"{_placement(state, set(layers), source)}_{version}", groups


def _version_and_groups(weight: Tensor, source: Path | str) -> tuple[str, int]:
    """Return the version and the number of offset groups of an offset convolution.

    v1 has 18 output channels per group and v2 has 27. The number of groups divides the number of
    input channels.
    """
    rows, channels = weight.shape[:2]
    for version, of_group in (("v1", 18), ("v2", 27)):
        if rows % of_group == 0 and channels % (rows // of_group) == 0:
            return version, rows // of_group
    raise WeightsError(f"{source} has {rows} offset channels, a multiple of neither 18 nor 27")


def _placement(state: dict[str, Tensor], layers: set[str], source: Path | str) -> str:
    """Return where the deformable layers are: `c3-c5` for stages, `last3` for the last layers."""
    of_stage = {
        stage: [
            key.removesuffix(".weight")
            for key, value in state.items()
            if re.fullmatch(rf"{BODY}{layer}\.\d+\.conv\d\.weight", key) and value.shape[2] == 3
        ]
        for stage, layer in STAGES.items()
    }
    names = list(STAGES)
    for first in names:
        of_these = [name for stage in names[names.index(first) :] for name in of_stage[stage]]
        if layers == set(of_these):
            return "c5" if first == "c5" else f"{first}-c5"
    convolutions = sorted((n for of in of_stage.values() for n in of), key=_order)
    if layers == set(convolutions[-len(layers) :]):
        return f"last{len(layers)}"
    shown = ", ".join(sorted(name.removeprefix(BODY) for name in layers)[:4])
    raise WeightsError(
        f"{source} has {len(layers)} deformable layers ({shown}, ...), which are neither whole "
        "stages up to c5 nor the last 3x3 convolutions: this is not supported"
    )


def _order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def differences(theirs: Architecture, ours: Architecture) -> tuple[list[str], list[str]]:
    """Compare the architecture of weights with that of the network they are loaded into.

    The classes may differ, and plain weights fit a deformable network.

    Returns:
        The configuration values that differ, as `key=value`: first those of the weights, then those
        of the network. Both lists are empty if the weights fit.
    """
    were, are = [], []
    for key, value, own in (
        ("model", replace(theirs, neck=theirs.neck or ours.neck).model, ours.model),
        ("model.neck", theirs.neck, ours.neck),
        ("deform", theirs.deforms, ours.deforms),
        ("deform.offset_groups", theirs.offset_groups, ours.offset_groups),
        ("model.fpn_channels", theirs.fpn_channels, ours.fpn_channels),
        ("model.rpn_channels", theirs.rpn_channels, ours.rpn_channels),
        ("model.roi_pool", theirs.roi_pool, ours.roi_pool),
        ("model.box_head_channels", theirs.box_head_channels, ours.box_head_channels),
        ("number of anchors per cell", theirs.num_anchors, ours.num_anchors),
    ):
        free = value in (None, "align") or (key.startswith("deform") and theirs.deforms == "none")
        if not free and value != own:
            were.append(f"{key}={value}")
            are.append(f"{key}={own}")
    return were, are
