"""One epoch of optimization.

The randomness of an epoch (which anchors and proposals are sampled for the losses) follows from
(seed, epoch); within an epoch a resumed run takes up the generators where they were.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detector.data.dataset import Sample
from detector.evaluation.inference import to_float


class StepError(RuntimeError):
    """A step that cannot be taken. The message names the images; `samples` are theirs."""

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


def train_epoch(
    model: nn.Module,
    batches: Iterable[list[Sample]],
    *,
    optimizer: Optimizer,
    lr_schedule: LRScheduler,
    device: torch.device,
    precision: torch.dtype,
    clip_norm: float | None,
    on_step: Callable[[dict[str, float]], None],
) -> None:
    """Optimize over the batches.

    Args:
        precision: bfloat16 computes the forward under autocast; weights stay float32.
        clip_norm: the gradient's largest norm; None: it is not clipped.
        on_step: called after each step with the total `loss`, its parts and the rate `lr`.

    Raises:
        NonFiniteError, MemoryExceededError: before the weights are touched.
    """
    model.train()
    for samples in batches:
        with _memory_errors_named(samples):
            losses = compute_losses(model, samples, device, precision)
            loss = torch.stack(list(losses.values())).sum()
            values = {name: value.item() for name, value in losses.items()}
            _check_finite(values, samples)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf)
        _check_finite({**values, "gradient norm": norm.item()}, samples)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        lr_schedule.step()
        on_step({"loss": loss.item(), **values, "lr": lr})


def compute_losses(
    model: nn.Module, samples: list[Sample], device: torch.device, precision: torch.dtype
) -> dict[str, Tensor]:
    """The detector's losses on a batch, in float32. Crowds are no targets."""
    images = [to_float(sample["image"], device) for sample in samples]
    targets = [
        {
            "boxes": sample["boxes"][~sample["iscrowd"]].to(device),
            "labels": sample["labels"][~sample["iscrowd"]].to(device),
        }
        for sample in samples
    ]
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        losses = model(images, targets)
    return {name: value.float() for name, value in losses.items()}


def _check_finite(values: dict[str, float], samples: list[Sample]) -> None:
    if all(math.isfinite(value) for value in values.values()):
        return
    parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    ids = ", ".join(str(sample["image_id"]) for sample in samples)
    raise NonFiniteError(f"the loss is not finite: {parts}; image ids {ids}", samples)


@contextmanager
def _memory_errors_named(samples: list[Sample]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On the CPU torch raises a plain RuntimeError.
        kinds = (torch.OutOfMemoryError, MemoryError)
        if not (isinstance(error, kinds) or "can't allocate memory" in str(error)):
            raise
        sizes = ", ".join(
            f"{sample['image_id']} ({'x'.join(map(str, sample['image'].shape[1:]))})"
            for sample in samples
        )
        raise MemoryExceededError(
            f"out of memory on {len(samples)} images: {sizes}; lower schedule.batch_size (and "
            "schedule.lr alike) or data.transform's sizes, or try precision=bfloat16",
            samples,
        ) from error
