"""Recognises a file of weights and gives its tensors this project's names, which are torchvision's.

The names of the tensors tell detectors of torchvision (and this project), mmdetection and
detectron2 apart, and the ResNets of their classifiers. Differences between the frameworks in the
weights themselves are undone: the background class comes first here, but last in mmdetection and
detectron2, whose box layer has no rows for it.
"""

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.model.weights import mmdetection
from detector.model.weights.files import FileContent, Inert, WeightsError, read

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Keys under which files keep their state dict.
HOLDERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "checkpoint", "ema")
BODY, HEAD = "backbone.body.", "roi_heads.box_predictor."
# Prefixes that DistributedDataParallel, torch.compile and Lightning add to every name.
WRAPPERS = ("module.", "_orig_mod.", "model.")

# Conventions of detectron2's networks that start from torchvision's weights. Its converter marks
# such files with the author `torchvision`.
RGB: dict[str, Any] = {
    "channel_order": "rgb",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}

# Conventions of detectron2's ResNeXts, whose weights came from Caffe2 and differ from MSRA's.
RESNEXT: dict[str, Any] = {"pixel_std": [57.375, 57.12, 58.395], "stride_in_1x1": False}

# Patterns of a framework's names -> this project's names. A name without a pattern is unknown.
NAMES: dict[str, dict[str, str]] = {
    "torchvision": {  # the first two: before 0.13, whose FPN and RPN layers have no number
        r"backbone\.fpn\.((?:inner|layer)_blocks\.\d+)\.(weight|bias)": r"backbone.fpn.\1.0.\2",
        r"rpn\.head\.conv\.(weight|bias)": r"rpn.head.conv.0.0.\1",
        r"(.*)": r"\1",
    },
    "mmdetection": {  # 2.x and 3.x; the first is for 1.x
        r"backbone\.(.*)\.conv2_offset\.(weight|bias)": BODY + r"\1.conv2.conv_offset.\2",
        r"backbone\.(.*)": BODY + r"\1",
        r"neck\.lateral_convs\.(\d)\.conv\.(.*)": r"backbone.fpn.inner_blocks.\1.0.\2",
        r"neck\.fpn_convs\.(\d)\.conv\.(.*)": r"backbone.fpn.layer_blocks.\1.0.\2",
        r"rpn_head\.rpn_conv\.(weight|bias)": r"rpn.head.conv.0.0.\1",
        r"rpn_head\.rpn_cls\.(.*)": r"rpn.head.cls_logits.\1",
        r"rpn_head\.rpn_reg\.(.*)": r"rpn.head.bbox_pred.\1",
        r"(?:roi_head\.)?bbox_head\.shared_fcs\.0\.(.*)": r"roi_heads.box_head.fc6.\1",
        r"(?:roi_head\.)?bbox_head\.shared_fcs\.1\.(.*)": r"roi_heads.box_head.fc7.\1",
        r"(?:roi_head\.)?bbox_head\.fc_cls\.(.*)": HEAD + r"cls_score.\1",
        r"(?:roi_head\.)?bbox_head\.fc_reg\.(.*)": HEAD + r"bbox_pred.\1",
    },
    "detectron2": {
        r"backbone\.bottom_up\.(?:stem\.)?(.*)": BODY + r"\1",
        r"backbone\.fpn_lateral(\d)\.(weight|bias)": r"backbone.fpn.inner_blocks.<\1>.0.\2",
        r"backbone\.fpn_output(\d)\.(weight|bias)": r"backbone.fpn.layer_blocks.<\1>.0.\2",
        r"proposal_generator\.rpn_head\.conv\.(weight|bias)": r"rpn.head.conv.0.0.\1",
        r"proposal_generator\.rpn_head\.objectness_logits\.(.*)": r"rpn.head.cls_logits.\1",
        r"proposal_generator\.rpn_head\.anchor_deltas\.(.*)": r"rpn.head.bbox_pred.\1",
        r"roi_heads\.box_head\.fc1\.(.*)": r"roi_heads.box_head.fc6.\1",
        r"roi_heads\.box_head\.fc2\.(.*)": r"roi_heads.box_head.fc7.\1",
        r"roi_heads\.box_predictor\.(.*)": HEAD + r"\1",
    },
}
# Replacements in names of detectron2 after that. `layer<n>` becomes layer n - 1, and the FPN's <n>
# becomes n - 2.
INSIDE_DETECTRON2 = {
    r"^backbone\.body\.conv1\.norm\.": "backbone.body.bn1.",
    r"\bres(\d)\.": r"layer<\1>.",
    r"\.conv(\d)\.norm\.": r".bn\1.",
    r"\.shortcut\.norm\.": ".downsample.1.",
    r"\.shortcut\.": ".downsample.0.",
    r"\.conv2_offset\.": ".conv2.conv_offset.",
}
# Patterns of tensors that are not loaded -> their name in the log, which omits those with none.
NOT_LOADED = {
    r".*num_batches_tracked|n_averaged|ema_.*": "",
    r"(.*\.)?pixel_(mean|std)|data_preprocessor\.(mean|std)|.*cell_anchors\.\d+": "",
    r"(?:roi_heads?\.)?(?:mask|keypoint|semantic|sem_seg)_.*": "the head of masks or keypoints",
    r"backbone\.body\.(fc|linear|stem\.fc)\..*|head\.fc\..*": "the classifier",
}
# Patterns of names that identify detectors that cannot be loaded.
OTHER_DETECTORS = {
    r"backbone\.(stem|res\d)\.|roi_heads\.res5\.": "detectron2's Faster R-CNN C4, without an FPN",
    r"head\.(cls_subnet|bbox_subnet)\.|bbox_head\.(cls|reg)_convs\.|head\.classification_head\.": (
        "a one-stage detector such as RetinaNet"
    ),
    r"roi_head\.bbox_head\.0\.|roi_heads\.box_head\.0\.fc|roi_heads\.box_predictor\.0\.": (
        "a Cascade R-CNN"
    ),
    r"roi_heads\.box_head\.\d\.0\.|backbone\.fpn\.inner_blocks\.0\.1\.": (
        "torchvision's fasterrcnn_resnet50_fpn_v2, whose FPN and head have norm layers"
    ),
    r"(module\.)?transformer\.|class_embed|bbox_embed": "a transformer such as DETR",
    r"backbone\.body\.0\.0\.|features\.": "a network of another kind than ResNet",
    r"(model\.)?\d+\.(conv|cv1|m)\.": "a YOLO model",
}


@dataclass
class Weights:
    """Weights by this project's names, and what the file says about their network.

    Attributes:
        path: the file.
        kind: its format in words.
        framework: `torchvision`, `mmdetection`, `detectron2`, or `ours` for this project.
        state: the tensors by the names of this project's detector. If the file holds only a
            backbone, all names begin with `backbone.body.`.
        left_out: parts of the file that no Faster R-CNN has, and how many tensors each has.
        classes: names in the order of their labels, without the background; None if the file does
            not name the classes.
        conventions: values of `Conventions`: the framework, and each value that the file states
            itself.
        mask_start: as `deform.mask_start`; None if the file does not state it.
    """

    path: Path
    kind: str
    framework: str
    state: StateDict
    left_out: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    conventions: dict[str, Any] = field(default_factory=dict)
    mask_start: float | None = None

    @property
    def is_detector(self) -> bool:
        """Whether these are the weights of a detector and not only of a backbone."""
        return any(not key.startswith(BODY) for key in self.state)


def read_weights(path: Path) -> Weights:
    """Read a file of weights and recognise its framework, classes and conventions.

    Raises:
        WeightsError: the file is not a file of weights, or its network is not supported.
    """
    content = read(path)
    holder = content.objects if isinstance(content.objects, dict) else {}
    if {"model", "config", "classes"} <= holder.keys() and is_own(holder["config"]):
        return _own_weights(path, content.kind, holder)
    given = ((name, _tensor(value)) for name, value in _find_state_dict(path, content).items())
    state = {name: value for name, value in given if value is not None and isinstance(name, str)}
    if not state:
        raise WeightsError(f"{path} ({content.kind}) {_without_tensors(holder)}")
    _check_numbers(path, state)
    framework, state = _recognised(path, state)
    weights = Weights(path, content.kind, framework, *_by_our_names(path, framework, state))
    weights.conventions = {"framework": framework}
    if framework == "detectron2" and _is_grouped(weights.state):
        weights.conventions |= RESNEXT
    weights.conventions |= _pixel_conventions(state)
    weights.mask_start = None if framework == "torchvision" else 0.5
    meta = holder.get("meta")
    if isinstance(meta, dict):
        weights.classes = _classes_of_mmdetection(meta)
        text = meta.get("cfg", meta.get("config"))  # in 3.x, in 2.x
        said, others = mmdetection.conventions_of(text)
        weights.conventions |= said
        if others:
            log.warning("%s: ignored values of its configuration: %s", path, ", ".join(others))
    if framework == "detectron2" and holder.get("__author__") == "torchvision":
        weights.conventions |= RGB
    if framework == "torchvision":
        weights.conventions |= _torchvision_conventions(path, content.metadata)
        weights.classes = _classes_of_torchvision(weights.state)
        said = _metadata_value(content.metadata, "classes")
        if isinstance(said, list):
            weights.classes = tuple(map(str, said))
        said = _metadata_value(content.metadata, "deform")
        weights.mask_start = said.get("mask_start") if isinstance(said, dict) else None
    return weights


def is_own(config: Any) -> bool:
    """Return whether a value looks like a configuration of this project."""
    return isinstance(config, dict) and {"model", "deform", "data"} <= config.keys()


def trained_weights(checkpoint: dict[str, Any]) -> StateDict:
    """Return the model's state dict of a checkpoint of this project: the EMA if it has one."""
    average = checkpoint.get("ema")
    if average is None:
        state: StateDict = checkpoint["model"]
        return state
    prefix = "module."  # of torch.optim.swa_utils.AveragedModel
    return {
        name.removeprefix(prefix): value
        for name, value in average.items()
        if name.startswith(prefix)
    }


def _own_weights(path: Path, kind: str, checkpoint: dict[str, Any]) -> Weights:
    trained = checkpoint["config"]
    return Weights(
        path,
        kind,
        "ours",
        trained_weights(checkpoint),
        classes=tuple(checkpoint["classes"]),
        conventions=trained["model"].get("conventions") or {"framework": "torchvision"},
        mask_start=trained["deform"]["mask_start"],
    )


def _find_state_dict(path: Path, content: FileContent) -> dict[str, Any]:
    """Find the state dict in the content of a file."""
    holder = content.objects
    if isinstance(holder, Inert):
        raise WeightsError(
            f"{path} is a whole object of {holder.name}, pickled, and not weights: save its "
            "state_dict()"
        )
    if not isinstance(holder, dict):
        raise WeightsError(f"{path} ({content.kind}) holds {_described(holder)} and no state dict")
    if "blobs" in holder or "conv1_w" in holder:
        raise WeightsError(
            f"{path} is a file of Caffe2 or Detectron 1, whose names and background class "
            "differ: load it in detectron2 once and save its state_dict()"
        )
    for key in HOLDERS:
        inner = holder.get(key)
        if isinstance(inner, Inert):
            raise WeightsError(
                f"{path}: {key!r} is a whole object of {inner.name}, pickled, and not weights: "
                "save its state_dict()"
            )
        if isinstance(inner, dict):
            return inner
    return holder


def _described(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"one array of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _without_tensors(holder: dict[Any, Any]) -> str:
    keys = ", ".join(str(key)[:30] for key in list(holder)[:5])
    return f"holds no state dict but {keys or 'nothing'}"


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor or a numpy array of numbers as a tensor, and None for other values."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        native = value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(value, dtype=native, order="C"))
    return value.detach() if isinstance(value, Tensor) else None


def _check_numbers(path: Path, state: StateDict) -> None:
    """Check that all tensors but counters are dense, floating point, finite and of a valid shape.

    Raises:
        WeightsError: a tensor is not; the message names it.
    """
    for name, value in state.items():
        if "num_batches" in name or "n_averaged" in name:
            continue
        if not value.is_floating_point() or value.is_sparse:
            raise WeightsError(
                f"{path}: {name} is of {value.dtype}, expected floating point numbers"
            )
        if not value.isfinite().all():
            raise WeightsError(f"{path}: {name} has values that are not finite")
        dimensions = 4 if name.endswith(("conv_offset.weight", "conv2_offset.weight")) else 1
        if name.endswith(".weight") and (value.dim() < dimensions or 0 in value.shape):
            raise WeightsError(
                f"{path}: {name} has the shape {tuple(value.shape)}, expected {dimensions} or more "
                "dimensions, none of them empty"
            )


def _recognised(path: Path, state: StateDict) -> tuple[str, StateDict]:
    """Return the framework, and the state without the prefixes that wrappers add to its names."""
    state.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    while True:
        prefix = next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}

    def any_is(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in state)

    other = next((words for pattern, words in OTHER_DETECTORS.items() if any_is(pattern)), None)
    if other is not None:
        raise WeightsError(
            f"{path} is {other}: only Faster R-CNN with a ResNet and an FPN is loaded"
        )
    if any_is(r"backbone\.(body|fpn)\."):
        return "torchvision", state
    if any_is(r"backbone\.bottom_up\."):
        return "detectron2", state
    if any_is(r"backbone\.layer\d\."):
        return "mmdetection", state
    if any_is(r"layer\d\.\d+\."):
        return "torchvision", {f"{BODY}{key}": value for key, value in state.items()}
    if any_is(r"res\d\.\d+\."):
        return "detectron2", {f"backbone.bottom_up.{key}": value for key, value in state.items()}
    names = ", ".join(list(state)[:3])
    raise WeightsError(
        f"{path} is no ResNet or Faster R-CNN of torchvision, mmdetection or detectron2: its "
        f"tensors have names such as {names}"
    )


def _by_our_names(path: Path, framework: str, state: StateDict) -> tuple[StateDict, dict[str, int]]:
    """Return the state by this project's names, and the number of tensors left out of each kind."""
    ours: StateDict = {}
    left: dict[str, int] = {}
    unknown = []
    for name, value in state.items():
        new = _our_name(framework, name)
        reason = next(
            (why for pattern, why in NOT_LOADED.items() if re.fullmatch(pattern, new or name)), None
        )
        if reason is not None:
            left[reason] = left.get(reason, 0) + 1
        elif new is None:
            unknown.append(name)
        else:
            ours[new] = value
    left.pop("", None)
    if unknown:
        raise WeightsError(
            f"{path} is {framework}'s and has {len(unknown)} tensors that no Faster R-CNN with an "
            f"FPN has, such as {', '.join(unknown[:3])}"
        )
    if any(not key.startswith(BODY) for key in ours) and f"{HEAD}cls_score.weight" not in ours:
        raise WeightsError(f"{path} has no box head: it holds an RPN or another kind of detector")
    if framework != "torchvision" and f"{HEAD}cls_score.weight" in ours:
        _background_first(path, ours)
    if framework == "detectron2" and not any(key.endswith("running_mean") for key in ours):
        _add_statistics(ours)
    return ours, left


def _our_name(framework: str, name: str) -> str | None:
    for pattern, new in NAMES[framework].items():
        if re.fullmatch(pattern, name):
            name = re.sub(rf"^{pattern}$", new, name)
            break
    else:
        return None
    if framework == "detectron2":
        for pattern, new in INSIDE_DETECTRON2.items():
            name = re.sub(pattern, new, name)
        name = re.sub(r"layer<(\d)>", lambda found: f"layer{int(found[1]) - 1}", name)
        name = re.sub(r"<(\d)>", lambda found: str(int(found[1]) - 2), name)
    return name


def _background_first(path: Path, state: StateDict) -> None:
    """Move the background's class scores to the front, and give it rows of zeros in the box layer.

    Raises:
        WeightsError: the box layer does not have four rows for each class but the background.
    """
    num_classes = len(state[f"{HEAD}cls_score.weight"]) - 1
    rows = len(state[f"{HEAD}bbox_pred.weight"])
    if rows == 4 * (num_classes + 1):
        raise WeightsError(
            f"{path} has {rows} box rows for {num_classes + 1} class scores: its background "
            "comes first, as in mmdetection 1. Convert it there, with "
            "tools/model_converters/upgrade_model_version.py"
        )
    if rows != 4 * num_classes:
        raise WeightsError(
            f"{path} has {rows} box rows for {num_classes} classes, expected {4 * num_classes}: "
            "class-agnostic box regression is not supported"
        )
    for kind in ("weight", "bias"):
        scores, boxes = f"{HEAD}cls_score.{kind}", f"{HEAD}bbox_pred.{kind}"
        state[scores] = state[scores].roll(1, dims=0)
        state[boxes] = torch.cat([torch.zeros_like(state[boxes][:4]), state[boxes]])


def _add_statistics(state: StateDict) -> None:
    """Add mean 0 and variance 1 to norm layers that Caffe2 merged into a scale and a shift."""
    for key in list(state):
        if re.search(r"\.(bn\d|downsample\.1)\.weight$", key):
            state[key.replace("weight", "running_mean")] = torch.zeros_like(state[key])
            state[key.replace("weight", "running_var")] = torch.ones_like(state[key])


# ---- What a file says about its network ----------------------------------------------------------


def _pixel_conventions(state: StateDict) -> dict[str, Any]:
    """Return the conventions that follow from the pixel statistics in old files of detectron2."""
    if not {"pixel_mean", "pixel_std"} <= state.keys():
        return {}
    mean, std = (state[key].flatten().tolist() for key in ("pixel_mean", "pixel_std"))
    if len(mean) != 3 or len(std) != 3:
        return {}
    is_rgb = all(abs(a - b) < 1 for a, b in zip(mean, RGB["pixel_mean"], strict=True))
    # Networks for pixels that are divided by a real deviation, such as those on torchvision's
    # weights, stride in the 3x3 convolution. MSRA's have a deviation of 1 and stride in the 1x1.
    return {
        "channel_order": "rgb" if is_rgb else "bgr",
        "pixel_mean": [round(value, 4) for value in mean],
        "pixel_std": [round(value, 4) for value in std],
        "stride_in_1x1": max(std) < 2,
    }


def _is_grouped(state: StateDict) -> bool:
    """Whether the 3x3 convolutions of a bottleneck have groups, as in a ResNeXt."""
    weight = state.get(f"{BODY}layer1.0.conv2.weight")
    return weight is not None and weight.shape[0] != weight.shape[1]


def _classes_of_mmdetection(meta: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the class names: `CLASSES` in 2.x, `dataset_meta` in 3.x; None without names."""
    of_3 = meta.get("dataset_meta")
    of_3 = of_3 if isinstance(of_3, dict) else {}
    names = next(
        (
            found
            for found in (meta.get("CLASSES"), of_3.get("classes"), of_3.get("CLASSES"))
            if found
        ),
        None,
    )
    if isinstance(names, str):
        names = (names,)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else None


def _torchvision_conventions(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Return the conventions in the metadata of this project's safetensors, or those of
    torchvision's own file, which the hash in its name identifies.
    """
    conventions = _metadata_value(metadata, "conventions")
    if isinstance(conventions, dict):
        return conventions
    return {"norm_eps": 0.0} if "258fb6c6" in path.name else {}  # fasterrcnn_resnet50_fpn, COCO_V1


def _metadata_value(metadata: dict[str, str], key: str) -> Any:
    """Return the JSON value of a key in safetensors metadata; None if missing or not JSON."""
    try:
        return json.loads(metadata.get(key, "null"))
    except ValueError:
        return None


def _classes_of_torchvision(state: StateDict) -> tuple[str, ...] | None:
    """Return the names of COCO's ids 1 to 90 if the classes are as many as torchvision's.

    Ten of these ids have no class.
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    scores = state.get(f"{HEAD}cls_score.weight")
    return tuple(names[1:]) if scores is not None and len(scores) == len(names) else None
