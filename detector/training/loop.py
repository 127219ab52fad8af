"""One epoch of optimization.

However many ranks and parts a step is split into, it trains on the same images, and its losses are
means over all ranks and parts. Only batch norm depends on the split: it normalises over one part's
images on one rank. Everything random about an image (its augmentation, and which of its anchors and
proposals are sampled for the losses) is a function of (seed, epoch, index). Any other random
number, such as those of dropout, is a function of (seed, epoch); a run that is resumed within an
epoch restores the random generators.
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
from detector.model.frozen_norm import FrozenBatchNorm2d
from detector.out_of_memory import is_out_of_memory
from detector.training.distribution import SINGLE_PROCESS, Ranks, without_averaging
from detector.training.preemption import StopRequest

MIN_SCALE = (
    1.0  # the smallest loss scale for float16: gradients that overflow at this scale have diverged
)


class StepError(RuntimeError):
    """A step cannot be taken. The message names the images.

    Attributes:
        samples: the samples of this rank's batch.
    """

    exit_code = exit_codes.FAILED

    def __init__(self, message: str, samples: list[Sample]) -> None:
        super().__init__(message)
        self.samples = samples


class NonFiniteError(StepError):
    """A loss or a gradient is infinite or NaN. The weights are still those before the step."""


class MemoryExceededError(StepError):
    """The device does not have enough memory for a batch."""


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch's random generators for one epoch."""
    torch.manual_seed(
        int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
    )


def use_deterministic_algorithms(wanted: bool) -> None:
    """If wanted, let torch use only algorithms that give the same result every time, on GPUs too.

    cuDNN's search for the fastest algorithm is switched off in any case.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's random generators that training on the device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore `generator_states`; those of another kind of device than this one are ignored."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@dataclass(frozen=True)
class Optimization:
    """What turns losses into optimizer steps.

    Attributes:
        lr_schedule: stepped after each optimizer step.
        scaler: scales the losses for float16; disabled for other precisions.
        precision: with bfloat16 or float16 the forward pass runs under autocast; the weights stay
            float32.
        clip_norm: the largest norm of the gradient, to which it is clipped; None for no clipping.
        ema: the moving average of the weights, updated after each step that is not left out.
        num_parts: the number of parts (batches) whose gradients are accumulated for one step.
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
    ranks: Ranks = SINGLE_PROCESS,
    stop: StopRequest | None = None,
) -> None:
    """Train on the batches of this rank.

    Args:
        model: with several ranks, the model that `Ranks.parallel` returns.
        batches: the parts of the steps; `num_parts` of them make one step.
        on_step: called after each step, also one that is left out, with the total `loss`, the
            single losses and the learning rate `lr` of the first parameter group. Losses are means
            over the ranks and parts of the step.
        on_not_finite: called if a loss or gradient is not finite. The step is then left out: the
            weights and running statistics stay as they were before it. None raises the error
            instead. All ranks come to the same decision.
        stop: checked in every step. If any rank was asked to stop, all ranks stop after the same
            step.

    Raises:
        NonFiniteError, MemoryExceededError: before the weights are changed.
        Preempted: after a step, if any rank was asked to stop.
    """
    stop = stop or StopRequest()
    model.train()
    unread = iter(batches)
    while parts := list(islice(unread, optimization.num_parts)):
        samples = [sample for part in parts for sample in part]
        before = [one.clone() for one in _changing_buffers(model)] if on_not_finite else []
        with _memory_errors_named(samples):
            names, losses = _backward(model, parts, optimization)
        norm = _gradient_norm(model, optimization)
        # The only synchronisation of a step with the other ranks (besides DDP's own) and with the
        # device. With float16 the scaler synchronises with the device as well.
        asked = torch.full_like(norm, stop.signal is not None)
        report = torch.stack([asked, norm.detach(), *losses])
        asked_to_stop, norm_value, *means = ranks.mean(report).tolist()
        values = dict(zip(names, means, strict=True))
        is_finite = math.isfinite(norm_value)
        try:
            _check_finite(values, norm_value, samples, ranks, optimization.scaler)
        except NonFiniteError as error:
            if on_not_finite is None:
                raise
            for buffer, value in zip(_changing_buffers(model), before, strict=True):
                buffer.copy_(value)
            on_not_finite(error)
            is_finite = False
        lr = optimization.optimizer.param_groups[0]["lr"]
        _step(model, optimization, is_finite=is_finite)
        on_step({"loss": sum(means), **values, "lr": lr})
        if asked_to_stop:
            stop.raise_if_stopped(ranks)


def _changing_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass may change: all but those of frozen batch norm."""
    return [
        buffer
        for module in model.modules()
        if not isinstance(module, FrozenBatchNorm2d)
        for buffer in module.buffers(recurse=False)
    ]


def _backward(
    model: nn.Module, parts: list[list[Sample]], optimization: Optimization
) -> tuple[list[str], Tensor]:
    """Compute the gradients of the mean loss over the parts.

    Returns:
        The names of the losses, and the mean of each over the parts.
    """
    optimization.optimizer.zero_grad(set_to_none=True)
    means = torch.zeros((), device=optimization.device)
    for number, part in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else without_averaging(model):
            losses = compute_losses(model, part, optimization.device, optimization.precision)
            values = torch.stack(list(losses.values()))
            optimization.scaler.scale(values.sum() / len(parts)).backward()
        means = means + values.detach() / len(parts)
    return list(losses), means


def _gradient_norm(model: nn.Module, optimization: Optimization) -> Tensor:
    """Clip the gradients to `clip_norm`; return their norm before clipping."""
    if optimization.scaler.is_enabled():
        optimization.scaler.unscale_(optimization.optimizer)
    trained = [one for one in model.parameters() if one.grad is not None]
    norm = nn.utils.get_total_norm([one.grad for one in trained if one.grad is not None])
    if optimization.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(trained, optimization.clip_norm, norm)
    return norm


def _step(model: nn.Module, optimization: Optimization, *, is_finite: bool) -> None:
    """Update the weights if the gradients are finite; step the schedule in any case."""
    if is_finite:
        optimization.optimizer.step()
        if optimization.ema is not None:
            optimization.ema.update_parameters(model)
    scaler = optimization.scaler
    if scaler.is_enabled():  # GradScaler checks single gradients, but their norm may overflow too
        scaler.update(None if is_finite else scaler.get_scale() * scaler.get_backoff_factor())
    with warnings.catch_warnings():  # the schedule may be stepped before the first optimizer step
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        optimization.lr_schedule.step()


def compute_losses(
    model: nn.Module, samples: list[Sample], device: torch.device, precision: torch.dtype
) -> dict[str, Tensor]:
    """Return the detector's losses on a batch, in float32 or float64.

    All objects of the samples are targets: `train_loader` leaves out the crowds.
    """
    assert not any(sample["iscrowd"].any() for sample in samples)
    images = [to_float(sample["image"], device) for sample in samples]
    targets = [
        {
            "boxes": sample["boxes"].to(device, non_blocking=True),
            "labels": sample["labels"].to(device, non_blocking=True),
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
    """Raise NonFiniteError if a loss or the norm of the gradient is not finite.

    With float16 an infinite norm alone is no error as long as the loss scale can still shrink.
    """
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
