"""Add RoI pooling to an ONNX graph: features of boxes, each from the level of its size.

B: images;  N: boxes of an image.
"""

import math
from typing import Any

from detector.export.graph import Graph


def pool(graph: Graph, maps: dict[str, str], boxes: str, pooling: Any) -> str:
    """Pool the features (B N, C, size, size) of proposals, each from the level of its size."""
    batch, number = graph.size(boxes, 0), graph.size(boxes, 1)
    image = graph.node("Range", graph.constant(0), graph.node("Squeeze", batch), graph.constant(1))
    both = graph.concat([batch, number], 0)
    images = graph.reshape(graph.node("Expand", graph.reshape(image, -1, 1), both), -1)
    boxes = graph.reshape(boxes, -1, 4)
    level = levels(graph, boxes, pooling)
    parts, orders = [], []
    for index, (name, stride) in enumerate(
        zip(pooling.featmap_names, pooling.strides, strict=True)
    ):
        here = graph.node("Equal", level, graph.number(float(index)))
        rows = graph.reshape(graph.node("NonZero", here), -1)
        parts.append(
            graph.node(
                "RoiAlign",
                maps[name],
                graph.node("Gather", boxes, rows),
                graph.node("Gather", images, rows),
                output_height=pooling.output_size[0],
                output_width=pooling.output_size[1],
                sampling_ratio=max(pooling.sampling_ratio, 0),
                spatial_scale=1 / stride,
                coordinate_transformation_mode=(
                    "half_pixel" if pooling.aligned else "output_half_pixel"
                ),
            )
        )
        orders.append(rows)
    order = graph.concat(orders, 0)  # the proposal in each row of `parts`; its inverse sorts them
    places = graph.node(
        "Range", graph.constant(0), graph.node("Squeeze", graph.size(order, 0)), graph.constant(1)
    )
    inverse = graph.node("ScatterElements", order, order, places)
    return graph.node("Gather", graph.concat(parts, 0), inverse)


def levels(graph: Graph, boxes: str, pooling: Any) -> str:
    """Return the level of each box, float32 (N,), 0 for the finest, as in `BoxPooling.levels`."""
    x1, y1, x2, y2 = graph.columns(boxes, 4)
    area = graph.node("Mul", graph.node("Sub", x2, x1), graph.node("Sub", y2, y1))
    size = graph.reshape(graph.node("Sqrt", area), -1)
    rule = pooling.level_rule
    start, canonical = (2, 56) if rule == "mmdetection" else (4, 224)
    inside = {"torchvision": 0.0, "detectron2": 1e-8, "mmdetection": 1e-6}[rule]
    ratio = graph.node("Div", size, graph.number(canonical))
    if inside:
        ratio = graph.node("Add", ratio, graph.number(inside))
    log2 = graph.node("Div", graph.node("Log", ratio), graph.number(math.log(2)))
    level = graph.node("Add", log2, graph.number(start))
    if rule == "torchvision":
        level = graph.node("Add", level, graph.number(1e-6))
    first, last = map(graph.number, pooling.level_range)
    level = graph.node("Clip", graph.node("Floor", level), first, last)
    return graph.node("Sub", level, first)
