"""Writes an ONNX graph node by node, in the order in which it is computed.

A value is its name, a text. Weights become initializers, small numbers constants. All nodes are of
the standard operators of opset 19, the first with DeformConv.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET = 19
IR_VERSION = 9  # of opset 19; runtimes refuse later ones than they know

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64}


class Graph:
    """A graph that grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.constants: dict[tuple[str, str, str], str] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; return that."""
        return self.nodes_of(kind, *inputs, outputs=1, **attributes)[0]

    def nodes_of(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node of several outputs; return them."""
        names = [f"{kind}_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def weight(self, value: Tensor | np.ndarray, name: str) -> str:
        """A tensor of the model."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        name = f"{name}_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, value: Any, dtype: str = "int64") -> str:
        """A number or a list of numbers; the same ones are stored once."""
        array = np.array(value, dtype=dtype)
        key = (dtype, str(array.shape), repr(array.tolist()))
        if key not in self.constants:
            self.constants[key] = self.weight(array, "constant")
        return self.constants[key]

    def number(self, value: float | list[float]) -> str:
        """A float32 number, or some."""
        return self.constant(value, "float32")

    # ---- Shapes ---------------------------------------------------------------------------------

    def cast(self, value: str, dtype: str) -> str:
        """A value in another dtype."""
        return self.node("Cast", value, to=TYPES[dtype])

    def size(self, value: str, axis: int) -> str:
        """The size of an axis, int64 (1,)."""
        return self.node("Shape", value, start=axis, end=axis + 1)

    def concat(self, values: Sequence[str], axis: int) -> str:
        """Values side by side."""
        return self.node("Concat", *values, axis=axis)

    def reshape(self, value: str, *shape: int | str) -> str:
        """Another shape; -1 for what is left, 0 for the same as before, or the name of a size."""
        if all(isinstance(side, int) for side in shape):
            return self.node("Reshape", value, self.constant(list(shape)))
        sides = [self.constant([side]) if isinstance(side, int) else side for side in shape]
        return self.node("Reshape", value, self.concat(sides, 0))

    def columns(self, value: str, number: int) -> list[str]:
        """The columns of the last axis, each with an axis of size 1."""
        return self.nodes_of("Split", value, self.constant([1] * number), outputs=number, axis=-1)

    def cut(self, value: str, first: int, last: int, axis: int) -> str:
        """Part of an axis."""
        ends = (self.constant([first]), self.constant([last]), self.constant([axis]))
        return self.node("Slice", value, *ends)

    def model(
        self,
        inputs: dict[str, tuple[int, list[Any]]],
        outputs: dict[str, tuple[str, int, list[Any]]],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The whole model.

        Args:
            inputs: type and shape by name.
            outputs: the value, its type and shape by name.
        """
        nodes = [
            *self.nodes,
            *(
                helper.make_node("Identity", [value], [name])
                for name, (value, *_) in outputs.items()
            ),
        ]
        graph = helper.make_graph(
            nodes,
            "detector",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [
                helper.make_tensor_value_info(name, dtype, shape)
                for name, (_, dtype, shape) in outputs.items()
            ],
            self.weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        model.producer_name = "deformable-faster-rcnn"
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
