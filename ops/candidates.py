"""What the benchmark times: our operator, others, and the matrix products that bound them all.

Every convolution is 3x3 with padding 1, as many output as input channels, a mask, and offsets drawn
from N(0, 2^2) pixels. It gets the memory format that suits the implementation: channels-last for
ours and `conv2d`, NCHW for the others.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ops import DeformConv2d, deform_conv2d

TAPS = 9
DTYPES = {  # by the second word of a candidate's name
    "float32": torch.float32,  # computed exactly
    "tf32": torch.float32,  # multiplied in TF32, as torch lets GPUs compute convolutions by default
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Problem:
    """The sizes of one convolution."""

    channels: int
    height: int
    width: int
    batch: int = 1
    groups: int = 1

    def __str__(self) -> str:
        channels = f"C{self.channels}" + (f"/{self.groups}" if self.groups > 1 else "")
        return f"{channels}@{self.height}x{self.width} N{self.batch}"


@dataclass(frozen=True)
class Candidate:
    """A forward, and the tensors to compute gradients of; none if it has no backward.

    It must be called within `float32_products(tf32)`, and so must the backward.
    """

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    tf32: bool = False


def build(name: str, problem: Problem, device: str) -> Candidate:
    """Build a candidate and its inputs from a name that `names` returns: "who dtype [how]"."""
    who, dtype_name, *how = name.split()
    if dtype_name == "tf32":
        return replace(build(name.replace("tf32", "float32"), problem, device), tf32=True)
    dtype = DTYPES[dtype_name]
    last = who in ("ours", "conv2d") and how != ["NCHW"]
    t = inputs(problem, device, dtype, torch.channels_last if last else torch.contiguous_format)
    if who == "ours" and how == ["high"]:
        return Candidate(lambda: _high(t), [])
    if who == "ours" and how == ["chunked"]:
        return Candidate(lambda: _chunked(t), list(t.values()))
    if who == "ours":
        return Candidate(lambda: _deformable(deform_conv2d, t), list(t.values()))
    if who == "torchvision" and how == ["autocast"]:
        return Candidate(lambda: _autocast(t, device), list(t.values()))
    if who == "torchvision":
        return Candidate(lambda: _deformable(torchvision.ops.deform_conv2d, t), list(t.values()))
    if who == "mmcv":
        return Candidate(lambda: _mmcv(t, problem.groups), list(t.values()))
    if who == "onnxruntime":
        return Candidate(_onnxruntime(t, problem.groups), [])
    if who == "conv2d":
        plain = t["input"], t["weight"]
        return Candidate(lambda: conv2d(*plain, padding=1, groups=problem.groups), list(plain))
    assert who == "mm", name
    columns, weight = _product(problem, device, dtype)
    return Candidate(lambda: columns @ weight, [columns, weight])


def names(device: str) -> list[str]:
    """Return the names of the candidates that can run on this machine."""
    found = ["ours float32", "ours bfloat16", "ours float32 NCHW", "torchvision float32"]
    if device == "cpu" and "amx" in torch.ops.deform_conv.cpu_capabilities().split():
        found.append("ours float32 high")
    if device == "cuda":
        found += ["ours tf32", "ours bfloat16 chunked", "torchvision bfloat16 autocast"]
    if _importable("mmcv.ops"):
        found.append("mmcv float32")
    if device == "cpu" and _importable("onnxscript", "onnxruntime"):
        found.append("onnxruntime float32")
    dtypes = [dtype for dtype in DTYPES if device == "cuda" or dtype != "tf32"]
    return [*found, *(f"{who} {dtype}" for who in ("conv2d", "mm") for dtype in dtypes)]


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Let a GPU compute products and convolutions of float32 in TF32, or exactly."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = tf32
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def inputs(
    problem: Problem, device: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> dict[str, Tensor]:
    """Draw features and weight in `dtype`, offset and mask in float32, in one memory format."""
    channels, height, width, batch, groups = astuple(problem)
    rng = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=rng, device=device)
        return drawn.contiguous(memory_format=memory_format)

    tensors = {
        "input": normal(batch, channels, height, width).to(dtype),
        "offset": 2 * normal(batch, 2 * TAPS, height, width),
        "weight": normal(channels, channels // groups, 3, 3).to(dtype),
        "mask": normal(batch, TAPS, height, width).sigmoid(),
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def compulsory_bytes(problem: Problem, dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes that each pass must read and write even with an unlimited cache."""
    size = dtype.itemsize
    positions = problem.batch * problem.height * problem.width
    features = positions * problem.channels * size
    weights = TAPS * problem.channels**2 // problem.groups
    given = features + positions * 3 * TAPS * 4 + weights * size
    forward = given + features
    # The backward reads the inputs and the output's gradient, and writes the inputs' gradients.
    return {"forward": forward, "forward+backward": forward + 2 * given + features}


def _deformable(function: Callable[..., Tensor], t: dict[str, Tensor]) -> Tensor:
    return function(t["input"], t["offset"], t["weight"], padding=1, mask=t["mask"])


def _high(t: dict[str, Tensor]) -> Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _deformable(deform_conv2d, t)
    finally:
        torch.set_float32_matmul_precision(before)


def _chunked(t: dict[str, Tensor]) -> Tensor:
    before = torch.ops.deform_conv.use_fused_cuda_forward(False)
    try:
        return _deformable(deform_conv2d, t)
    finally:
        torch.ops.deform_conv.use_fused_cuda_forward(before)


def _autocast(t: dict[str, Tensor], device: str) -> Tensor:
    # A cached cast would outlive the capture of a CUDA graph.
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        return _deformable(torchvision.ops.deform_conv2d, t)


def _mmcv(t: dict[str, Tensor], groups: int) -> Tensor:
    from mmcv.ops import modulated_deform_conv2d

    arguments = (t["input"], t["offset"], t["mask"], t["weight"])
    return modulated_deform_conv2d(*arguments, None, 1, 1, 1, groups, 1)


def _product(problem: Problem, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw columns and a weight, the factors of the product that every such algorithm computes."""
    positions, channels = problem.batch * problem.height * problem.width, problem.channels
    groups = (problem.groups,) if problem.groups > 1 else ()
    outs = channels // problem.groups
    columns, weight = (
        torch.randn(size, device=device).to(dtype).requires_grad_()
        for size in ((*groups, positions, TAPS * outs), (*groups, TAPS * outs, outs))
    )
    return columns, weight


def _importable(*modules: str) -> bool:
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError:
        return False
    return True


def _onnxruntime(t: dict[str, Tensor], groups: int) -> Callable[[], Tensor]:
    import onnxruntime

    channels = t["input"].shape[1]
    module = DeformConv2d(channels, channels, 3, padding=1, groups=groups, bias=False).eval()
    module.weight = nn.Parameter(t["weight"].detach())
    arguments = tuple(t[name].detach() for name in ("input", "offset", "mask"))
    program = torch.onnx.export(module, arguments, dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait by spinning would keep cores busy while the next candidate is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = [node.name for node in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(given, arguments, strict=True)}
    return lambda: torch.from_numpy(session.run(None, feeds)[0])
