"""One epoch of optimization.

The images of a step are the same for any number of processes and parts: its losses are means over
theirs, only batch norm sees one of them at a time. The randomness of an image (its augmentation,
which of its anchors and proposals the losses look at) follows from (seed, epoch, index). What else
there may be follows from (seed, epoch); within an epoch a resumed run takes up the generators where
they were.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from detector import exit_codes
from detector.data.dataset import Sample
from detector.evaluation.inference import to_float
from detector.out_of_memory import is_out_of_memory
from detector.training.distribution import ALONE, Ranks, without_averaging
from detector.training.preemption import StopRequest

MIN_SCALE = 1.0  # float16's gradients need no smaller factor: if they overflow here, they diverge


class StepError(RuntimeError):
    """A step that cannot be taken. The message names the images; `samples` are theirs."""

    exit_code = exit_codes.FAILED

    def __init__(self, message: str, samples: list[Sample]) -> None:
        super().__init__(message)
        self.samples = samples


class NonFiniteError(StepError):
    """A loss or gradient is infinite or NaN. The weights are those from before the step."""


class MemoryExceededError(StepError):
    """The device has not enough memory for a batch."""


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch's generators for one epoch."""
    torch.manual_seed(
        int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
    )


def use_deterministic_algorithms(wanted: bool) -> None:
    """Whether torch may use only algorithms that give the same result again, on a GPU as well."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Of torch's generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Set them to what `generator_states` gave; on another kind of device the CPU's alone."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@dataclass(frozen=True)
class Optimization:
    """How losses become steps.

    Attributes:
        lr_schedule: stepped once a step.
        scaler: of float16's losses; disabled for other precisions.
        precision: bfloat16 and float16 compute the forward under autocast; weights stay float32.
        clip_norm: the gradient's largest norm; None: it is not clipped.
        ema: averages the weights after each step, but for one that is left out.
        num_parts: batches whose gradients make one step.
    """

    optimizer: Optimizer
    lr_schedule: LRScheduler
    scaler: GradScaler
    device: torch.device
    precision: torch.dtype
    clip_norm: float | None = None
    ema: AveragedModel | None = None
    num_parts: int = 1


def train_epoch(
    model: nn.Module,
    batches: Iterable[list[Sample]],
    optimization: Optimization,
    *,
    on_step: Callable[[dict[str, float]], None],
    on_not_finite: Callable[[NonFiniteError], None] | None = None,
    ranks: Ranks = ALONE,
    stop: StopRequest | None = None,
) -> None:
    """Optimize over the batches of this rank.

    Args:
        model: the parallel one, if there are several ranks.
        on_step: called after each step with the total `loss` and its parts, means over the ranks
            and parts of the step, and the rate `lr`.
        on_not_finite: called in place of a step, whose batch is then left out, running statistics
            included; None: the error is raised. Every rank comes to the same answer.
        stop: looked at in every step; all ranks leave after the one in which any was told to.

    Raises:
        NonFiniteError, MemoryExceededError: before the weights are touched.
        Preempted: after a step.
    """
    stop = stop or StopRequest()
    model.train()
    unread = iter(batches)
    while parts := list(islice(unread, optimization.num_parts)):
        samples = [sample for part in parts for sample in part]
        before = [b.clone() for b in model.buffers()] if on_not_finite else []
        with _memory_errors_named(samples):
            losses = _backward(model, parts, optimization)
        norm = _gradient_norm(model, optimization)
        # With the other ranks and with the device: the one synchronisation of a step, to which
        # float16 adds those of its scaler.
        told = torch.full_like(norm, stop.signal is not None)
        report = torch.stack([told, norm.detach(), *losses.values()])
        told_to_stop, norm_value, *means = ranks.mean(report).tolist()
        values = dict(zip(losses, means, strict=True))
        is_finite = math.isfinite(norm_value)
        try:
            _check_finite(values, norm_value, samples, ranks, optimization.scaler)
        except NonFiniteError as error:
            if on_not_finite is None:
                raise
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
            on_not_finite(error)
            is_finite = False
        lr = optimization.optimizer.param_groups[0]["lr"]
        _step(model, optimization, is_finite=is_finite)
        on_step({"loss": sum(means), **values, "lr": lr})
        if told_to_stop:
            stop.raise_for(ranks)


def _backward(
    model: nn.Module, parts: list[list[Sample]], optimization: Optimization
) -> dict[str, Tensor]:
    """Set the gradients to those of the mean over the parts; return the means of the losses."""
    optimization.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else without_averaging(model):
            losses = compute_losses(model, part, optimization.device, optimization.precision)
            loss = torch.stack(list(losses.values())).sum() / len(parts)
            optimization.scaler.scale(loss).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(parts)
    return sums


def _gradient_norm(model: nn.Module, optimization: Optimization) -> Tensor:
    """The norm of the gradients, which are clipped to `clip_norm`."""
    if optimization.scaler.is_enabled():
        optimization.scaler.unscale_(optimization.optimizer)
    return nn.utils.clip_grad_norm_(model.parameters(), optimization.clip_norm or math.inf)


def _step(model: nn.Module, optimization: Optimization, *, is_finite: bool) -> None:
    """Move the weights, unless the gradients are not finite; the schedule goes on in any case."""
    if is_finite:
        optimization.optimizer.step()
        if optimization.ema is not None:
            optimization.ema.update_parameters(model)
    scaler = optimization.scaler
    if scaler.is_enabled():  # a norm may overflow where no gradient does, which it looks at
        scaler.update(None if is_finite else scaler.get_scale() * scaler.get_backoff_factor())
    with warnings.catch_warnings():  # of a schedule that goes on before the first step was taken
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        optimization.lr_schedule.step()


def compute_losses(
    model: nn.Module, samples: list[Sample], device: torch.device, precision: torch.dtype
) -> dict[str, Tensor]:
    """The detector's losses on a batch, in float32 or better. Crowds are no targets."""
    images = [to_float(sample["image"], device) for sample in samples]
    targets = [
        {
            "boxes": sample["boxes"][~sample["iscrowd"]].to(device, non_blocking=True),
            "labels": sample["labels"][~sample["iscrowd"]].to(device, non_blocking=True),
            **({"seed": sample["seed"]} if "seed" in sample else {}),
        }
        for sample in samples
    ]
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        losses = model(images, targets)
    return {
        name: value.to(torch.promote_types(value.dtype, torch.float32))
        for name, value in losses.items()
    }


def _check_finite(
    losses: dict[str, float],
    norm: float,
    samples: list[Sample],
    ranks: Ranks,
    scaler: GradScaler,
) -> None:
    """A norm that float16's factor made infinite is no error: the factor is about to shrink."""
    if all(map(math.isfinite, losses.values())):
        if math.isfinite(norm) or (scaler.is_enabled() and scaler.get_scale() > MIN_SCALE):
            return
    values = {**losses, "gradient norm": norm}
    parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    ids = ranks.all_gather([sample["image_id"] for sample in samples])
    named = ", ".join(str(image_id) for of_rank in ids for image_id in of_rank)
    raise NonFiniteError(f"the loss is not finite: {parts}; image ids {named}", samples)


@contextmanager
def _memory_errors_named(samples: list[Sample]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sizes = ", ".join(
            f"{sample['image_id']} ({'x'.join(map(str, sample['image'].shape[1:]))})"
            for sample in samples
        )
        raise MemoryExceededError(
            f"out of memory on {len(samples)} images: {sizes}; give a larger schedule.num_parts, "
            "smaller data.transform sizes, or precision=bfloat16",
            samples,
        ) from error
