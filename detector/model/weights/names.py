"""Gives the tensors of a framework this project's names, which are torchvision's.

Differences between the frameworks in the weights themselves are undone: the background class comes
first here, but last in mmdetection and detectron2, whose box layer has no rows for it.
"""

import re
from pathlib import Path

import torch

from detector.model.weights.files import WeightsError
from detector.model.weights.state_dicts import StateDict

BODY, HEAD = "backbone.body.", "roi_heads.box_predictor."

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


def by_our_names(path: Path, framework: str, state: StateDict) -> tuple[StateDict, dict[str, int]]:
    """Rename the tensors of a state dict as `recognise` returns it.

    Returns:
        The state dict by this project's names, and how many tensors of each kind are left out.

    Raises:
        WeightsError: a tensor is of no Faster R-CNN with an FPN, or the box head is missing or of
            another kind.
    """
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
