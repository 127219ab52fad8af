"""Choose the device, the precision and the number of data-loading workers."""

import torch

from detector.config import ConfigError
from detector.data.loading import num_cores
from detector.training.distribution import SINGLE_PROCESS, Ranks

USEFUL_WORKERS = 8  # per training process: with more, the GPU rather than loading is the limit


def build_device(device: str, ranks: Ranks = SINGLE_PROCESS) -> torch.device:
    """Return the device to compute on. With several ranks, each rank of a machine has its own GPU.

    Args:
        device: as torch names it, or `auto`: CUDA if it is available, else the CPU.

    Raises:
        ConfigError: the device cannot be used here, or names a single GPU for several ranks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.num_ranks > 1 and device.startswith("cuda"):
        if device != "cuda":
            raise ConfigError(
                f"device={device} names a single device, but each of the {ranks.num_ranks} "
                "processes needs its own: give device=cuda"
            )
        # A scheduler may make only its own GPU visible to each process, which is then number 0.
        device = f"cuda:{ranks.local_rank if torch.cuda.device_count() > 1 else 0}"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"device={device} cannot be used here ({reason})") from error
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


def check_devices(device: str, devices: int) -> None:
    """Check that there is a GPU for each of `devices` processes, unless they use the CPU.

    Raises:
        ConfigError: there are fewer GPUs, or `device` names a single one, or one of another kind.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return
    if not device.startswith(("auto", "cuda")):
        raise ConfigError(
            f"device={device} cannot be used with devices={devices}: several processes train on "
            "cpu or cuda"
        )
    if device not in ("auto", "cuda"):
        raise ConfigError(
            f"device={device} names a single device, but devices={devices} processes need one "
            "each: give device=cuda"
        )
    if devices > torch.cuda.device_count():
        raise ConfigError(f"devices={devices}: this machine has {torch.cuda.device_count()} GPU(s)")


def build_num_workers(
    num_workers: int | str, device: torch.device, ranks: Ranks = SINGLE_PROCESS
) -> int:
    """Return the number of workers that load images for one process that trains or detects.

    On a CPU `auto` is 0: workers would compete with training for the cores, and moving images
    between processes costs time as well. With a GPU `auto` is this process's share of the cores,
    at most `USEFUL_WORKERS`: at 230 images/s per core (docs/benchmarks.md), eight load 1800.
    """
    if num_workers != "auto":
        return int(num_workers)
    share = num_cores() // ranks.num_local
    return 0 if device.type == "cpu" else min(max(share, 1), USEFUL_WORKERS)


def build_precision(precision: str) -> torch.dtype:
    """Return the dtype for autocast; float32 means that autocast is off."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[precision]
