"""Which network weights are of, read off their names and shapes, in the words of configs/."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from detector.model.resnet import STAGES
from detector.model.roi_pooling import ROI_SIZE
from detector.model.weights.files import WeightsError
from detector.model.weights.names import BODY, HEAD

# Of bottlenecks? How many blocks a stage? What shape has the first conv2, but for its kernel?
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
# configs/model/ of a backbone and a neck, where it is not NAME_fpn
MODELS = {
    ("resnet10", "fpn"): "tiny",
    ("resnet50", "dc5"): "resnet50_dc5",
    ("resnet101", "dc5"): "resnet101_dc5",
}


@dataclass
class Architecture:
    """A network; None where a backbone alone does not say.

    Attributes:
        backbone: as `model.backbone`.
        neck: as `model.neck`.
        deforms: `none`, `c3-c5_v1` and so on, as the files of configs/deform/ are called.
        offset_groups: as `deform.offset_groups`; 1 where nothing deforms.
        fpn_channels, rpn_channels, roi_pool, box_head_channels: as in `model`.
        num_anchors: of a cell.
        num_classes: K, without the background.
        has_statistics: the norm layers are batch norm, frozen or not, and not group norm.
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
        """The file of configs/model/ that is nearest."""
        usual = MODELS.get((self.backbone, "fpn"), f"{self.backbone}_fpn")
        return MODELS.get((self.backbone, self.neck or "fpn"), usual)

    @property
    def modulated(self) -> bool:
        """Whether it deforms by v2."""
        return self.deforms.endswith("_v2")


def architecture(state: dict[str, Tensor], source: Path | str) -> Architecture:
    """The network of a state dict by our names.

    Raises:
        WeightsError: no configuration describes it; the message begins with `source`.
    """

    def rows(name: str) -> int | None:
        return len(state[name]) if name in state else None

    deforms, groups = _deforming(state, source)
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
            f"conv2 of shape {shape}: only {', '.join(BACKBONES.values())} are built"
        )
    return BACKBONES[is_bottleneck, numbers, shape]


def _roi_pool(state: dict[str, Tensor]) -> str | None:
    """Two offsets a bin, or with a mask three numbers; the box head's fc6 sees the same bins."""
    fc6 = state.get("roi_heads.box_head.fc6.weight")
    offsets = state.get("roi_heads.box_roi_pool.fc_offset.weight")
    if fc6 is None:
        return None
    if offsets is None:
        return "align"
    num_bins = ROI_SIZE**2
    return "deform_v1" if len(offsets) == 2 * num_bins else "deform_v2"


def _deforming(state: dict[str, Tensor], source: Path | str) -> tuple[str, int]:
    """What deforms, and by how many offset groups."""
    suffix = ".conv_offset.weight"
    layers = [key.removesuffix(suffix) for key in state if key.endswith(suffix)]
    if not layers:
        return "none", 1
    kinds = {_kind(state[layer + suffix], source) for layer in layers}
    if len(kinds) > 1:
        raise WeightsError(f"{source} has deformable layers of several kinds, which is not built")
    ((version, groups),) = kinds
    return f"{_placement(state, set(layers), source)}_{version}", groups


def _kind(weight: Tensor, source: Path | str) -> tuple[str, int]:
    """v1 has 18 channels a group, v2 27; the groups divide the input's channels."""
    rows, channels = weight.shape[:2]
    for version, of_group in (("v1", 18), ("v2", 27)):
        if rows % of_group == 0 and channels % (rows // of_group) == 0:
            return version, rows // of_group
    raise WeightsError(f"{source} has {rows} offset channels, a multiple of neither 18 nor 27")


def _placement(state: dict[str, Tensor], layers: set[str], source: Path | str) -> str:
    """By stages, or as the last k 3x3 convolutions."""
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
        "stages up to c5 nor the last ones: that is not built"
    )


def _order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def differences(theirs: Architecture, ours: Architecture) -> tuple[list[str], list[str]]:
    """What weights are of and what the network is, as values of the configuration, where these
    differ in more than the classes. Plain weights fit a deformable network.
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
        ("anchors of a cell, in number,", theirs.num_anchors, ours.num_anchors),
    ):
        free = value in (None, "align") or (key.startswith("deform") and theirs.deforms == "none")
        if not free and value != own:
            were.append(f"{key}={value}")
            are.append(f"{key}={own}")
    return were, are
