"""The whole detector as an ONNX graph: uint8 images in, boxes in pixels of these images out.

    images      uint8 (B, H, W, 3), RGB; B, H and W are dynamic
    boxes       float32 (B, D, 4), xyxy in pixels, by descending score
    scores      float32 (B, D)
    labels      int64 (B, D), 1..K; the metadata's `classes` is the list of their names
    num         int64 (B,), the number of detections of each image; the rows after them are 0

The graph gives the results of torchvision's FasterRCNN for images that are evaluated one by one.
In the graph, every image has the same number of proposals and of detections. Rows without a real
one are padding: they have a score of -1, which is lower than every real score, until the end.

B: images;  D: detections per image;  K: classes;  A: anchors per cell;  N: anchors or proposals.
"""

import json

import onnx
from onnx import TensorProto
from torchvision.models.detection import FasterRCNN

from detector.export.boxes import (
    NO_SCORE,
    at_most,
    clipped,
    decoded,
    drop_small,
    gather_rows,
    nms,
)
from detector.export.graph import Graph
from detector.export.network import features, linear, proposals_head, relu
from detector.export.roi_pooling import pool

MULTIPLE = 32  # pixels; the sides of images are padded to a multiple of it


def onnx_model(model: FasterRCNN, classes: list[str], metadata: dict[str, str]) -> onnx.ModelProto:
    """Build the ONNX model of a detector in evaluation mode.

    Args:
        classes: the names of the labels 1..K.
        metadata: key -> text, stored in the file in addition to the classes.
    """
    graph = Graph()
    network_input, original, resized = preprocessed(graph, "images", model)
    maps = features(graph, network_input, model)
    boxes, valid = proposals(graph, maps, network_input, resized, model)
    found = detections(graph, maps, boxes, valid, resized, model)
    boxes, scores, labels, number = in_pixels(graph, *found, original, resized)
    return graph.model(
        inputs={"images": (TensorProto.UINT8, ["batch", "height", "width", 3])},
        outputs={
            "boxes": (boxes, TensorProto.FLOAT, ["batch", "detections", 4]),
            "scores": (scores, TensorProto.FLOAT, ["batch", "detections"]),
            "labels": (labels, TensorProto.INT64, ["batch", "detections"]),
            "num": (number, TensorProto.INT64, ["batch"]),
        },
        metadata={"classes": json.dumps(classes, ensure_ascii=False), **metadata},
    )


# ---- Images --------------------------------------------------------------------------------------


def preprocessed(graph: Graph, images: str, model: FasterRCNN) -> tuple[str, str, str]:
    """Normalise, resize and pad the images.

    Returns:
        The network's input (B, 3, H, W), and the image size (h, w) before and after the resize,
        int64 (2,).
    """
    transform = model.transform
    pixels = graph.cast(graph.node("Transpose", images, perm=[0, 3, 1, 2]), "float32")
    original = graph.node("Shape", pixels, start=2)
    pixels = graph.node("Div", pixels, graph.number(255))
    if transform.channel_order == "bgr":
        ends = ([-1], [-4], [1], [-1])  # start, end, axis and step: reverses the channels
        pixels = graph.node("Slice", pixels, *map(graph.constant, ends))
    mean, std = (
        graph.constant([[[value]] for value in values], "float32")
        for values in (transform.image_mean, transform.image_std)
    )
    pixels = graph.node("Div", graph.node("Sub", pixels, mean), std)

    # Use float64 as torchvision does, because rounding may decide which of two scales is lower.
    sides = graph.cast(original, "float64")
    least, most = (
        graph.constant([size], "float64") for size in (transform.min_size[-1], transform.max_size)
    )
    scale = graph.node(
        "Min",
        graph.node("Div", least, graph.node("ReduceMin", sides, keepdims=1)),
        graph.node("Div", most, graph.node("ReduceMax", sides, keepdims=1)),
    )
    exact = graph.node("Mul", sides, scale)
    resized = graph.node(
        "Max", graph.cast(graph.node("Floor", exact), "int64"), graph.constant([1])
    )
    shape = graph.concat([graph.node("Shape", pixels, end=2), resized], 0)
    pixels = graph.node(
        *("Resize", pixels, "", "", shape),
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    multiple = graph.constant([MULTIPLE])
    rows = graph.node("Div", graph.node("Add", resized, graph.constant([MULTIPLE - 1])), multiple)
    missing = graph.node("Sub", graph.node("Mul", rows, multiple), resized)
    pads = graph.concat([graph.constant([0] * 6), missing], 0)
    return graph.node("Pad", pixels, pads), original, resized


# ---- Proposals -----------------------------------------------------------------------------------


def proposals(
    graph: Graph, maps: dict[str, str], network_input: str, resized: str, model: FasterRCNN
) -> tuple[str, str]:
    """Return proposals (B, N, 4), and which of them are real and not padding, bool (B, N)."""
    rpn, all_boxes, all_scores = model.rpn, [], []
    for level, of_level in enumerate(list(maps.values())[: rpn.head.num_levels]):
        logits, deltas = proposals_head(graph, of_level, rpn.head)
        logits = graph.reshape(graph.node("Transpose", logits, perm=[0, 2, 3, 1]), 0, -1)
        deltas = by_anchor(graph, deltas)
        k = at_most(graph, rpn._pre_nms_top_n["testing"], graph.size(logits, 1))
        logits, order = graph.nodes_of("TopK", logits, k, outputs=2, axis=1)
        deltas = gather_rows(graph, deltas, order)
        anchors = graph.node(
            "Gather", anchors_of(graph, level, of_level, network_input, model), order
        )
        boxes = decoded(graph, deltas, anchors, rpn.box_coder)
        boxes = clipped(graph, boxes, resized)
        scores = drop_small(graph, boxes, graph.node("Sigmoid", logits), rpn.min_size)
        kept = nms(graph, boxes, scores, threshold=rpn.nms_thresh, least=NO_SCORE / 2)
        all_boxes.append(boxes)
        all_scores.append(kept)
    boxes, scores = graph.concat(all_boxes, 1), graph.concat(all_scores, 1)
    k = at_most(graph, rpn._post_nms_top_n["testing"], graph.size(scores, 1))
    scores, order = graph.nodes_of("TopK", scores, k, outputs=2, axis=1)
    valid = graph.node("Greater", scores, graph.number(NO_SCORE / 2))
    return gather_rows(graph, boxes, order), valid


def anchors_of(graph: Graph, level: int, maps: str, network_input: str, model: FasterRCNN) -> str:
    """Return the anchors (H W A, 4) of a level."""
    generator = model.rpn.anchor_generator
    axes = []
    for axis in (2, 3):
        number = graph.size(maps, axis)
        if generator.strides is None:
            stride = graph.node("Div", graph.size(network_input, axis), number)
        else:
            stride = graph.constant([generator.strides[level]])
        places = graph.node(
            "Range", graph.constant(0), graph.node("Squeeze", number), graph.constant(1)
        )
        axes.append(graph.cast(graph.node("Mul", places, stride), "float32"))
    y, x = graph.reshape(axes[0], -1, 1, 1), graph.reshape(axes[1], 1, -1, 1)
    shape = graph.concat([graph.size(maps, 2), graph.size(maps, 3), graph.constant([1])], 0)
    y, x = graph.node("Expand", y, shape), graph.node("Expand", x, shape)
    centres = graph.reshape(graph.concat([x, y, x, y], 2), -1, 1, 4)
    cells = graph.weight(generator.cell_anchors[level].float()[None], "cell_anchors")
    return graph.reshape(graph.node("Add", centres, cells), -1, 4)


def by_anchor(graph: Graph, deltas: str) -> str:
    """Reorder deltas (B, 4 A, H, W) to (B, H W A, 4), in the order of the anchors."""
    rows = graph.node("Transpose", deltas, perm=[0, 2, 3, 1])
    return graph.reshape(rows, 0, -1, 4)


# ---- Detections ----------------------------------------------------------------------------------


def detections(
    graph: Graph, maps: dict[str, str], boxes: str, valid: str, resized: str, model: FasterRCNN
) -> tuple[str, str, str]:
    """Return boxes (B, D, 4) in pixels of the resized image, scores (B, D) and labels (B, D)."""
    heads = model.roi_heads
    batch, number = graph.size(boxes, 0), graph.size(boxes, 1)
    pooled = pool(graph, maps, boxes, heads.box_roi_pool)
    flat = graph.node("Flatten", pooled)
    hidden = relu(graph, linear(graph, flat, heads.box_head.fc6))
    hidden = relu(graph, linear(graph, hidden, heads.box_head.fc7))
    logits = linear(graph, hidden, heads.box_predictor.cls_score)
    deltas = linear(graph, hidden, heads.box_predictor.bbox_pred)

    num_classes = heads.box_predictor.cls_score.out_features - 1
    scores = graph.cut(graph.node("Softmax", logits, axis=1), 1, num_classes + 1, 1)
    scores = graph.reshape(scores, batch, number, num_classes)  # without the background
    deltas = graph.cut(deltas, 4, 4 * (num_classes + 1), 1)
    deltas = graph.reshape(deltas, batch, number, num_classes, 4)
    of_class = graph.node("Unsqueeze", boxes, graph.constant([2]))
    boxes = clipped(graph, decoded(graph, deltas, of_class, heads.box_coder), resized)
    none = graph.number(NO_SCORE)
    scores = graph.node("Where", graph.node("Unsqueeze", valid, graph.constant([2])), scores, none)
    scores = drop_small(graph, boxes, scores, heads.min_side)

    # Make each class of each image an item of the batch: NMS is then separate for each class.
    boxes = graph.reshape(graph.node("Transpose", boxes, perm=[0, 2, 1, 3]), -1, number, 4)
    scores = graph.reshape(graph.node("Transpose", scores, perm=[0, 2, 1]), -1, number)
    scores = nms(*(graph, boxes, scores), threshold=heads.nms_thresh, least=heads.score_thresh)
    boxes = graph.reshape(boxes, batch, -1, 4)
    scores = graph.reshape(scores, batch, -1)
    k = at_most(graph, heads.detections_per_img, graph.size(scores, 1))
    scores, order = graph.nodes_of("TopK", scores, k, outputs=2, axis=1)
    labels = graph.node("Add", graph.node("Div", order, number), graph.constant([1]))
    return gather_rows(graph, boxes, order), scores, labels


def in_pixels(
    graph: Graph, boxes: str, scores: str, labels: str, original: str, resized: str
) -> tuple[str, str, str, str]:
    """Scale boxes to pixels of the given images, set padding to 0, and count the detections."""
    ratio = graph.node("Div", graph.cast(original, "float32"), graph.cast(resized, "float32"))
    by_side = graph.node("Gather", ratio, graph.constant([1, 0, 1, 0]))
    boxes = graph.node("Mul", boxes, by_side)
    valid = graph.node("Greater", scores, graph.number(NO_SCORE / 2))
    number = graph.node("ReduceSum", graph.cast(valid, "int64"), graph.constant([1]), keepdims=0)
    rows = graph.node("Unsqueeze", valid, graph.constant([2]))
    return (
        graph.node("Where", rows, boxes, graph.number(0)),
        graph.node("Where", valid, scores, graph.number(0)),
        graph.node("Where", valid, labels, graph.constant(0)),
        number,
    )
