"""Modules with the operator, compiled by inductor, or exported to ONNX and run by onnxruntime."""

import shutil

import pytest
import torch
from cases import UGLY, Geometry, make, relative
from torch import Tensor, nn
from torch.autograd import grad
from torch.export import Dim

from detector.model.deformable_conv import DeformableConv2d
from ops import DeformConv2d
from ops.onnx import deform_conv


class Block(nn.Module):
    """A deformable convolution as detectors use it, between operators that can be fused."""

    def __init__(self, *, modulated: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.deformable = DeformableConv2d(
            6,
            4,
            (3, 2),
            stride=(2, 1),
            padding=(1, 0),
            dilation=(2, 1),
            groups=2,
            bias=bias,
            modulated=modulated,
            offset_groups=3,
            mask_start=0.5,
        )
        rng = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3, generator=rng)

    def forward(self, input: Tensor) -> Tensor:
        return self.deformable(input * 2).relu()


def features(batch: int, height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(batch + height + width)
    return torch.randn(batch, 6, height, width, generator=rng)


# ---- torch.compile ---------------------------------------------------------------------------


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler"
)


def assert_equal_with_gradients(compiled, module: nn.Module, *inputs: Tensor) -> None:
    actual, expected = compiled(*inputs), module(*inputs)
    assert relative(actual, expected) < 1e-6
    leaves = [*inputs, *module.parameters()]
    gradients = zip(
        grad(actual.square().sum(), leaves), grad(expected.square().sum(), leaves), strict=True
    )
    assert all(relative(a, e) < 1e-6 for a, e in gradients)


@needs_compiler
def test_inductor_compiles_the_operator_once_for_any_size() -> None:
    class Sampled(nn.Module):
        """The operator between others that can be fused, with offsets from outside."""

        def __init__(self) -> None:
            super().__init__()
            self.deformable = DeformConv2d(6, 4, (3, 2), *UGLY.steps, groups=2)

        def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return self.deformable(input * 2, offset + 0.25, mask.sigmoid()).relu()

    module = Sampled()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for batch, size in ((2, (11, 9)), (3, (8, 13))):
        geometry = Geometry(batch, 6, size, 4, (3, 2), *UGLY.steps, 2, 3)
        tensors = make(geometry, dtype=torch.float32)
        inputs = [tensors[name].detach().requires_grad_() for name in ("input", "offset", "mask")]
        with torch.compiler.set_stance("default" if batch == 2 else "fail_on_recompile"):
            assert_equal_with_gradients(compiled, module, *inputs)


@needs_compiler
@pytest.mark.slow
def test_inductor_compiles_the_detectors_layer_in_one_graph() -> None:
    # torch 2.14 recompiles for another size, because a plain convolution's gradient needs that.
    block = Block()
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for size in ((2, 11, 9), (3, 8, 13)):
        assert_equal_with_gradients(compiled, block, features(*size).requires_grad_())


# ---- ONNX ------------------------------------------------------------------------------------

# onnxruntime adds offsets to positions in float32, after a convolution that sums in another order.
TOLERANCE = 1e-5


@pytest.fixture
def runtime():
    """Return onnxruntime; skip the test if the extra `onnx` is not installed."""
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def run(runtime, program: torch.onnx.ONNXProgram, *inputs: Tensor) -> Tensor:
    session = runtime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in session.get_inputs()]
    feeds = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feeds)[0])


def node_of(program: torch.onnx.ONNXProgram):
    (node,) = [node for node in program.model.graph if node.op_type == "DeformConv"]
    return node


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_detectors_layer_for_any_size(runtime, modulated: bool, bias: bool) -> None:
    block = Block(modulated=modulated, bias=bias).eval()
    sizes = ({0: "batch", 2: "height", 3: "width"},)
    program = torch.onnx.export(
        block, (features(2, 11, 9),), dynamo=True, dynamic_shapes=sizes, verbose=False
    )
    with torch.no_grad():
        for size in ((2, 11, 9), (3, 8, 13), (1, 5, 4)):
            input = features(*size)
            assert relative(run(runtime, program, input), block(input)) < TOLERANCE


def test_the_node_is_the_standards(runtime) -> None:
    program = torch.onnx.export(
        Block().eval(), (features(1, 6, 5),), dynamo=True, verbose=False, opset_version=19
    )
    node = node_of(program)
    assert node.domain == "" and program.model.opset_imports[""] == 19
    shapes = [tuple(value.shape) for value in node.inputs]
    assert shapes == [(1, 6, 6, 5), (4, 3, 3, 2), (1, 36, 2, 4), (4,), (1, 18, 2, 4)]
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "dilations": (2, 1),
        "group": 2,
        "kernel_shape": (3, 2),
        "offset_group": 3,
        "pads": (1, 0, 1, 0),
        "strides": (2, 1),
    }


def test_channels_last_modules(runtime) -> None:
    block = Block().eval().to(memory_format=torch.channels_last)
    input = features(2, 11, 9).contiguous(memory_format=torch.channels_last)
    program = torch.onnx.export(block, (input,), dynamo=True, verbose=False)
    with torch.no_grad():
        assert relative(run(runtime, program, input), block(input)) < TOLERANCE


@pytest.mark.parametrize("mask", [True, False])
def test_offsets_from_outside(runtime, mask: bool) -> None:
    module = DeformConv2d(6, 4, (3, 2), *UGLY.steps, groups=2).eval()
    names = ("input", "offset", "mask") if mask else ("input", "offset")

    def inputs(batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        geometry = Geometry(batch, 6, size, 4, (3, 2), *UGLY.steps, 2, 3)
        tensors = make(geometry, dtype=torch.float32)
        return tuple(tensors[name].detach() for name in names)

    program = torch.onnx.export(
        module,
        inputs(2, (11, 9)),
        dynamo=True,
        dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},) * len(names),
        verbose=False,
    )
    with torch.no_grad():
        other = inputs(3, (8, 13))
        assert relative(run(runtime, program, *other), module(*other)) < TOLERANCE


def test_low_precision_features_keep_float32_offsets(runtime) -> None:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deformable = DeformConv2d(6, 4, (3, 2), *UGLY.steps, groups=2).bfloat16()

        def forward(self, input: Tensor, offset: Tensor) -> Tensor:
            return self.deformable(input.bfloat16(), offset).float()

    tensors = make(UGLY, dtype=torch.float32)
    inputs = tensors["input"].detach(), tensors["offset"].detach()
    module = Low().eval()
    program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    input_type, _, offset_type = (value.dtype.name for value in node_of(program).inputs[:3])
    assert input_type == offset_type == "FLOAT"
    kinds = [node.op_type for node in program.model.graph]
    assert kinds == ["Cast", "Cast", "DeformConv", "Cast", "Cast"]  # to bfloat16 and back, twice
    with torch.no_grad():
        # the kernels may round the samples to bfloat16 as well, which has 8 bits
        assert relative(run(runtime, program, *inputs), module(*inputs)) < 2**-8


def test_a_captured_program_is_told(runtime) -> None:
    block = Block().eval()
    input = features(2, 11, 9)
    program = torch.export.export(block, (input,))
    table = {torch.ops.deform_conv.forward.default: deform_conv}
    exported = torch.onnx.export(program.run_decompositions(table), dynamo=True, verbose=False)
    with torch.no_grad():
        assert relative(run(runtime, exported, input), block(input)) < TOLERANCE
