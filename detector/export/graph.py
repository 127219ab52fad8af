"""Build an ONNX graph node by node, in the order of computation.

A value of the graph is represented by its name, a string. Weights and constants become
initializers. All nodes are standard operators of opset 19, the first opset with DeformConv.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET = 19
IR_VERSION = 9  # the version of opset 19; runtimes refuse versions newer than they know

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64}


class Graph:
    """Collects the nodes and weights of a graph; methods return the names of added values."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.constants: dict[tuple[str, str, str], str] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; return the output."""
        return self.nodes_of(kind, *inputs, outputs=1, **attributes)[0]

    def nodes_of(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs; return the outputs."""
        names = [f"{kind}_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def weight(self, value: Tensor | np.ndarray, name: str) -> str:
        """Add a tensor of the model."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        name = f"{name}_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, value: Any, dtype: str = "int64") -> str:
        """Add a number or a list of numbers; equal constants are stored once."""
        array = np.array(value, dtype=dtype)
        key = (dtype, str(array.shape), repr(array.tolist()))
        if key not in self.constants:
            self.constants[key] = self.weight(array, "constant")
        return self.constants[key]

    def number(self, value: float | list[float]) -> str:
        """Add a float32 number or a list of them."""
        return self.constant(value, "float32")

    # ---- Shapes ---------------------------------------------------------------------------------

    def cast(self, value: str, dtype: str) -> str:
        """Convert a value to another dtype."""
        return self.node("Cast", value, to=TYPES[dtype])

    def size(self, value: str, axis: int) -> str:
        """Get the size of an axis, int64 (1,)."""
        return self.node("Shape", value, start=axis, end=axis + 1)

    def concat(self, values: Sequence[str], axis: int) -> str:
        """Concatenate values along an axis."""
        return self.node("Concat", *values, axis=axis)

    def reshape(self, value: str, *shape: int | str) -> str:
        """Reshape a value.

        Args:
            shape: the size of each axis: a number, -1 to infer it, 0 to keep that of the input, or
                the name of a value that holds it, int64 (1,).
        """
        if all(isinstance(side, int) for side in shape):
            return self.node("Reshape", value, self.constant(list(shape)))
        sides = [self.constant([side]) if isinstance(side, int) else side for side in shape]
        return self.node("Reshape", value, self.concat(sides, 0))

    def columns(self, value: str, number: int) -> list[str]:
        """Split the last axis into its columns, each with a last axis of size 1."""
        return self.nodes_of("Split", value, self.constant([1] * number), outputs=number, axis=-1)

    def cut(self, value: str, first: int, last: int, axis: int) -> str:
        """Cut out the range of an axis from `first` up to, but without, `last`."""
        ends = (self.constant([first]), self.constant([last]), self.constant([axis]))
        return self.node("Slice", value, *ends)

    def model(
        self,
        inputs: dict[str, tuple[int, list[Any]]],
        outputs: dict[str, tuple[str, int, list[Any]]],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """Build the whole model, and check it.

        Args:
            inputs: name -> type and shape.
            outputs: name -> value in the graph, type and shape.
            metadata: key -> text, stored in the file.
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
