"""Reads the conventions of a network from the configuration in its mmdetection checkpoint.

The configuration is the text of a Python file of assignments. Only constants, lists, tuples,
dictionaries and calls of `dict` are read, and nothing is run.
"""

import ast
from typing import Any

# Values that networks here have by default. Others are ignored, and a warning names them.
DEFAULTS: dict[str, Any] = {
    "rpn_head.anchor_generator.scales": [8],  # times the strides they give `model.anchor_sizes`
    "rpn_head.anchor_generator.ratios": [0.5, 1.0, 2.0],
    "rpn_head.anchor_generator.strides": [4, 8, 16, 32, 64],
    "rpn_head.bbox_coder.target_stds": [1.0, 1.0, 1.0, 1.0],
    "roi_head.bbox_head.bbox_coder.target_stds": [0.1, 0.1, 0.2, 0.2],
    "roi_head.bbox_roi_extractor.finest_scale": 56,
    "train_cfg.rpn.assigner.pos_iou_thr": 0.7,
    "train_cfg.rpn.assigner.neg_iou_thr": 0.3,
    "train_cfg.rpn.sampler.type": "RandomSampler",
    "train_cfg.rpn.sampler.num": 256,
    "train_cfg.rpn.sampler.pos_fraction": 0.5,
    "train_cfg.rpn_proposal.nms.type": "nms",
    "train_cfg.rpn_proposal.nms.iou_threshold": 0.7,
    "train_cfg.rcnn.assigner.pos_iou_thr": 0.5,
    "train_cfg.rcnn.assigner.neg_iou_thr": 0.5,
    "train_cfg.rcnn.sampler.type": "RandomSampler",
    "train_cfg.rcnn.sampler.num": 512,
    "train_cfg.rcnn.sampler.pos_fraction": 0.25,
    "test_cfg.rpn.nms.type": "nms",
    "test_cfg.rpn.nms.iou_threshold": 0.7,
    "test_cfg.rcnn.nms.type": "nms",
    "test_cfg.rcnn.nms.iou_threshold": 0.5,
    "test_cfg.rcnn.score_thr": 0.05,
    "test_cfg.rcnn.max_per_img": 100,
}


def conventions_of(text: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the values of `Conventions` that a configuration has, and others that are ignored.

    Args:
        text: the configuration; anything but a string has no values.

    Returns:
        The values by their names in `Conventions`, and the values that networks here do not follow,
        as `key=value`.
    """
    if not isinstance(text, str):
        return {}, []
    config = parse_assignments(text)
    model = config.get("model")
    model = model if isinstance(model, dict) else {}
    # Early files of 2.x have them beside `model`. In 3.x, other settings have these names there.
    model = {key: config.get(key) for key in ("train_cfg", "test_cfg")} | model
    found: dict[str, Any] = {}
    if nested_value(model, "backbone.style") == "caffe":
        found["stride_in_1x1"] = True
    images = model.get("data_preprocessor", config.get("img_norm_cfg"))
    if isinstance(images, dict):
        for theirs, ours in (("mean", "pixel_mean"), ("std", "pixel_std")):
            if is_numbers(images.get(theirs)):
                found[ours] = [float(number) for number in images[theirs]]
        is_rgb = images.get("bgr_to_rgb", images.get("to_rgb"))
        if isinstance(is_rgb, bool):
            found["channel_order"] = "rgb" if is_rgb else "bgr"
    others = [
        f"{key}={value}"
        for key, default in DEFAULTS.items()
        if (value := nested_value(model, key)) not in (None, default)
    ]
    return found, others


def is_numbers(value: Any) -> bool:
    """Return whether a value is a list of three numbers, as a mean or standard deviation is."""
    return (
        isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
    )


def nested_value(config: Any, key: str) -> Any:
    """Return the nested value under a dotted key, or None."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def parse_assignments(text: str) -> dict[str, Any]:
    """Return the names that the text assigns and their values, which are None if not read."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {
        statement.targets[0].id: evaluate_literal(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }


def evaluate_literal(node: ast.expr) -> Any:
    """Return the value of a constant, list, tuple, dictionary or call of `dict`; None otherwise."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [evaluate_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {
                key.value: evaluate_literal(value)
                for key, value in pairs
                if isinstance(key, ast.Constant)
            }
        case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
            return {word.arg: evaluate_literal(word.value) for word in keywords if word.arg}
    return None
