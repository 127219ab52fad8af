"""The work of a step, which must be the same for our networks and torchvision's."""

from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from detector.benchmark.candidates import Candidate
from detector.model.flops import counted_flops

Row = dict[str, Any]


def work_of(name: str, candidate: Candidate) -> Row:
    """Run one float32 step and return its losses and counts: the parameters, the floating-point
    operations and the RoIs that the box head classifies.
    """
    rois: list[int] = []
    head = candidate.model.roi_heads.box_head
    hook = head.register_forward_pre_hook(lambda _, given: rois.append(len(given[0])))
    with FlopCounterMode(display=False) as counter:
        losses = candidate.step("float32")
    hook.remove()
    parameters = list(candidate.model.parameters())
    return {
        "candidate": name,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        # The counter does not support torchvision's operator.
        "GFLOP": None if name == "torchvision deformable" else counted_flops(counter) / 1e9,
        "RoIs": rois[0],
        **{loss: value.item() for loss, value in losses.items()},
    }


def check_equal_work(rows: list[Row]) -> None:
    """Check that our networks do the same work as torchvision's.

    The two plain networks must have equal numbers of parameters, trainable parameters and
    floating-point operations, the two deformable networks equal numbers of parameters, and all four
    must classify the same number of RoIs. Losses are not compared. Those of the plain networks
    agree, but those of the deformable networks agree only roughly: thirteen layers that sample
    noise at random offsets amplify rounding differences until the features differ.

    Raises:
        AssertionError: the work differs.
    """
    by_name = {row["candidate"]: row for row in rows}
    for how, keys in (("", ("parameters", "trainable", "GFLOP")), (" deformable", ("parameters",))):
        for key in keys:
            pair = [by_name[who + how][key] for who in ("ours", "torchvision")]
            assert pair[0] == pair[1], f"{key}{how}: ours {pair[0]}, torchvision's {pair[1]}"
    assert len({row["RoIs"] for row in rows}) == 1, [row["RoIs"] for row in rows]
