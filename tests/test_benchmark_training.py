"""The training benchmark gives all candidates the same work and summarises times correctly. No
speed is asserted.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from detector.benchmark import __main__ as command
from detector.benchmark import candidates as networks
from detector.benchmark import measurement, report
from detector.benchmark import work as works
from detector.model.deformable_conv import deformable_like

SIZE = 64


@pytest.fixture(scope="module")
def candidates() -> dict[str, networks.Candidate]:
    found = {name: networks.build(name, "cpu", SIZE) for name in networks.CANDIDATES}
    for candidate in found.values():
        # A small image has too few proposals to sample 512 RoIs.
        candidate.model.roi_heads.fg_bg_sampler.batch_size_per_image = 64
    return found


@pytest.fixture(scope="module")
def work(candidates: dict[str, networks.Candidate]) -> list[works.Row]:
    return [works.work_of(name, candidate) for name, candidate in candidates.items()]


# ---- candidates ------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_torchvisions_layer_computes_what_ours_does(stride: int) -> None:
    conv = nn.Conv2d(6, 5, 3, stride=stride, padding=1, bias=False)
    layer = deformable_like(conv, modulated=True, offset_groups=1, mask_start=1.0)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    nn.init.normal_(layer.conv_offset.bias, std=2.0)
    twin = networks.TorchvisionDeformableConv2d(conv)
    twin.load_state_dict(layer.state_dict())
    image = torch.randn(2, 6, 9, 7, requires_grad=True)
    expected = layer(image)
    torch.testing.assert_close(twin(image), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    leaves = [image, *layer.parameters()], [image, *twin.parameters()]
    grads, twins = (
        torch.autograd.grad(module(image), inputs, upstream)
        for module, inputs in zip((layer, twin), leaves, strict=True)
    )
    for a, b in zip(grads, twins, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * a.abs().max().item())


def test_torchvisions_layer_runs_under_autocast() -> None:
    twin = networks.TorchvisionDeformableConv2d(nn.Conv2d(6, 5, 3, padding=1, bias=False))
    image = torch.randn(2, 6, 9, 7).bfloat16()
    expected = twin(image.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(twin(image), expected)


def test_torchvisions_model_is_the_one_it_ships() -> None:
    shipped = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=networks.NUM_CLASSES + 1
    )
    mine = networks.torchvisions(deformable=False)
    batch_norm = {k: v for k, v in shipped.state_dict().items() if "num_batches" not in k}
    shapes = [{k: v.shape for k, v in s.items()} for s in (batch_norm, mine.state_dict())]
    assert shapes[0] == shapes[1]
    # With pretrained weights torchvision builds the same model with frozen batch norm.
    assert any(isinstance(module, FrozenBatchNorm2d) for module in mine.modules())


def test_twins_have_equal_weights(candidates: dict[str, networks.Candidate]) -> None:
    for how in ("", " deformable"):
        ours, theirs = (candidates[who + how].model for who in ("ours", "torchvision"))
        state = theirs.state_dict()
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())
        learn = [{k for k, p in m.named_parameters() if p.requires_grad} for m in (ours, theirs)]
        assert learn[0] == learn[1]
        assert "backbone.body.layer2.0.conv2.weight" in learn[0]
        assert "backbone.body.layer1.0.conv2.weight" not in learn[0]
        layers = [m for m in theirs.modules() if hasattr(m, "conv_offset")]
        assert len(layers) == (13 if how else 0)
        assert all(type(m) is networks.TorchvisionDeformableConv2d for m in layers)


def test_offsets_are_as_long_as_they_should_be() -> None:
    candidate = networks.build("ours deformable", "cpu", 128)
    layer = candidate.model.get_submodule("backbone.body.layer2.1.conv2")
    stds = []
    layer.register_forward_hook(lambda m, given, _: stds.append(m.offsets(given[0])[0].std()))
    with torch.no_grad():
        candidate.model.backbone(candidate.model.transform(candidate.images)[0].tensors)
    assert 1 < stds[0] < 3


# ---- steps -----------------------------------------------------------------------------------


def test_all_candidates_do_the_same_work(work: list[works.Row]) -> None:
    works.check_equal_work(work)
    ours, deformable, torchvision, _ = work
    assert ours["RoIs"] == networks.BATCH * 64
    assert deformable["GFLOP"] > ours["GFLOP"]
    assert all(math.isfinite(row[key]) for row in work for key in row if key.startswith("loss"))
    # The plain networks differ in memory format, and therefore in rounding. The deformable networks
    # are not compared: their offsets amplify rounding until the features differ.
    for loss in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"):
        assert ours[loss] == pytest.approx(torchvision[loss], rel=1e-2)


@pytest.mark.parametrize("key", ["parameters", "trainable", "GFLOP", "RoIs"])
def test_unequal_work_is_noticed(work: list[works.Row], key: str) -> None:
    more = [{**row, key: row[key] + 1} if row["candidate"] == "ours" else row for row in work]
    with pytest.raises(AssertionError):
        works.check_equal_work(more)


@pytest.mark.parametrize(  # on a processor without bfloat16 instructions a step takes ten seconds
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", networks.CANDIDATES)
def test_every_step_is_the_same_step(
    candidates: dict[str, networks.Candidate], name: str, dtype: str
) -> None:
    candidate = candidates[name]
    parameter = next(p for p in candidate.model.parameters() if p.requires_grad)
    first, second = candidate.step(dtype), candidate.step(dtype)
    assert all(math.isfinite(value) for value in first.values())
    assert first == second
    assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_the_first_round_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def step_seconds(candidate: str, dtype: str, device: str) -> float:
        calls.append(f"{candidate} {dtype}")
        return float(len(calls))

    monkeypatch.setattr(measurement, "step_seconds", step_seconds)
    measured = measurement.measure({"x": "x", "y": "y"}, "cpu", 2, [*command.DTYPES])  # type: ignore[dict-item]
    names = {"x float32", "y float32", "x bfloat16", "y bfloat16"}
    assert measured.keys() == names
    assert all(set(calls[i : i + 4]) == names for i in (0, 4, 8))
    assert sorted(t for times in measured.values() for t in times) == list(map(float, range(5, 13)))


# ---- report ----------------------------------------------------------------------------------


def samples() -> measurement.Samples:
    """Return the seconds of three rounds in an order in which the median is not always second."""
    float32 = {
        "ours": [4.0, 1.0, 2.0],
        "ours deformable": [3.0, 3.0, 3.0],
        "torchvision": [2.5, 2.5, 2.5],
        "torchvision deformable": [30.0, 30.0, 30.0],
    }
    return {
        f"{name} {dtype}": [time * factor for time in times]
        for dtype, factor in (("float32", 1), ("bfloat16", 0.5))
        for name, times in float32.items()
    }


def test_rows_are_medians_and_spreads() -> None:
    row = report.rows_of(samples(), {"ours float32": 100.0})[0]
    assert row == {"candidate": "ours float32", "seconds": 2.0, "spread": 1.5, "MiB": 100.0}
    table = report.time_table(report.rows_of(samples(), {"ours float32": 100.0}))
    assert "| ours float32 | 2 | 75% | 100 |" in table.splitlines()
    assert "| torchvision bfloat16 | 1.25 | 0% | - |" in table.splitlines()


def test_ratios() -> None:
    ratios = report.ratios_of(report.rows_of(samples(), {}), list(command.DTYPES))
    assert [row["float32"] for row in ratios] == [0.8, 1.5, 10.0]
    assert [row["bfloat16"] for row in ratios] == [0.8, 1.5, 10.0]
    assert report.table_of(ratios).splitlines()[2] == (
        "| ours / torchvision | 0.8 | 0.8 | at most 0.8 |"
    )


@pytest.mark.skipif(
    not measurement.memory.measurable("cpu"), reason="the resident peak cannot be reset"
)
@pytest.mark.slow
def test_the_peak_holds_at_least_gradients_and_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "SIZE", SIZE)
    peak = measurement.peak_memory("torchvision", "float32", "cpu")
    assert peak > 2 * 41_481_636 * 4 / 2**20  # twice the trainable parameters, in float32


def test_memory_on_cuda_is_read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process for each candidate took minutes, and the allocator counts exactly."""
    monkeypatch.setattr(measurement.subprocess, "run", None)
    monkeypatch.setattr(measurement, "peak", lambda name, dtype, device, size: float(size))
    assert measurement.peak_memory("ours", "float32", "cuda") == measurement.SIZE


def test_the_command(
    candidates: dict[str, networks.Candidate],
    work: list[works.Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    rows = {row["candidate"]: row for row in work}
    monkeypatch.setattr(command, "build", lambda name, *_: candidates[name])
    monkeypatch.setattr(command, "work_of", lambda name, _: rows[name])
    monkeypatch.setattr(measurement, "step_seconds", lambda *_: 2.0)
    monkeypatch.setattr(command, "peak_memory", lambda *_: 1.0)
    threads = torch.get_num_threads()
    arguments = ["--rounds", "2", "--threads", "1", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    try:
        command.main()
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "out.json").read_text())
    assert len(content["steps"]) == 8 and len(content["work"]) == 4
    assert all(times == [2.0, 2.0] for times in content["samples"].values())
    assert content["machine"]["date"] and content["rounds"] == 2 and content["threads"] == 1
    output = capsys.readouterr()
    assert "| ours / torchvision | 1 | 1 | at most 0.8 |" in output.out
    assert "round 2 of 2" in output.err and "round" not in output.out.replace("rounds", "")
