"""Add arithmetic with boxes to an ONNX graph: decoding, clipping, dropping and NMS.

Every image has the same number of boxes. Rows without a real one are padding, and have a score
that is lower than every real one.

B: images;  N: boxes of an image.
"""

import math
from typing import Any

from detector.export.graph import Graph

NO_SCORE = -1.0  # the score of padding, which is no proposal and no detection


def at_most(graph: Graph, number: int, size: str) -> str:
    """Return the smaller of a number and a size, int64 (1,)."""
    return graph.node("Min", graph.constant([number]), size)


def gather_rows(graph: Graph, values: str, order: str) -> str:
    """Gather the rows with the indices (B, M) from (B, N, 4): (B, M, 4)."""
    return str(
        graph.node(
            "GatherND", values, graph.node("Unsqueeze", order, graph.constant([2])), batch_dims=1
        )
    )


def decoded(graph: Graph, deltas: str, boxes: str, decoder: Any) -> str:
    """Apply deltas (..., 4) to boxes (..., 4) as `BoxDecoder` does; return boxes (..., 4)."""
    x1, y1, x2, y2 = graph.columns(boxes, 4)
    dx, dy, dw, dh = (
        graph.node("Div", delta, graph.number(weight))
        for delta, weight in zip(graph.columns(deltas, 4), decoder.weights, strict=True)
    )
    clip = decoder.bbox_xform_clip
    ends = (graph.number(-clip if decoder.clamp_shrinking else -math.inf), graph.number(clip))
    sides = []
    half = graph.number(0.5)
    for low, high, shift, growth in ((x1, x2, dx, dw), (y1, y2, dy, dh)):
        side = graph.node("Sub", high, low)
        centre = graph.node("Add", low, graph.node("Mul", half, side))
        centre = graph.node("Add", graph.node("Mul", shift, side), centre)
        grown = graph.node("Mul", graph.node("Exp", graph.node("Clip", growth, *ends)), side)
        reach = graph.node("Mul", half, grown)
        sides.append((graph.node("Sub", centre, reach), graph.node("Add", centre, reach)))
    (left, right), (top, bottom) = sides
    return graph.concat([left, top, right, bottom], -1)


def clipped(graph: Graph, boxes: str, resized: str) -> str:
    """Clip boxes (..., 4) to the resized image."""
    ends = graph.node("Gather", graph.cast(resized, "float32"), graph.constant([1, 0, 1, 0]))
    return graph.node("Min", graph.node("Max", boxes, graph.number(0)), ends)


def drop_small(graph: Graph, boxes: str, scores: str, least: float) -> str:
    """Keep the scores (...) of boxes (..., 4) with sides of at least `least` pixels.

    The scores of other boxes become NO_SCORE.
    """
    x1, y1, x2, y2 = graph.columns(boxes, 4)
    shorter = graph.node("Min", graph.node("Sub", x2, x1), graph.node("Sub", y2, y1))
    shorter = graph.node("Squeeze", shorter, graph.constant([-1]))
    large = graph.node("GreaterOrEqual", shorter, graph.number(least))
    return graph.node("Where", large, scores, graph.number(NO_SCORE))


def nms(graph: Graph, boxes: str, scores: str, *, threshold: float, least: float) -> str:
    """Keep the scores (B, N) of boxes (B, N, 4) that non-maximum suppression keeps.

    The scores of other boxes, and scores that are not above `least`, become NO_SCORE.

    Args:
        threshold: the IoU above which a box is suppressed by a better one.
    """
    selected = graph.node(
        "NonMaxSuppression",
        boxes,
        graph.node("Unsqueeze", scores, graph.constant([1])),
        graph.constant([2**31 - 1]),
        graph.number([threshold]),
        graph.number([least]),
    )
    places = graph.node("Gather", selected, graph.constant([0, 2]), axis=1)  # image, box
    kept = graph.node("GatherND", scores, places)
    nothing = graph.node("Expand", graph.number(NO_SCORE), graph.node("Shape", scores))
    return graph.node("ScatterND", nothing, places, kept)
