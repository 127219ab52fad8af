"""Where to compute, in which precision, and with how many processes that load."""

import torch

from detector.config import ConfigError
from detector.data.loading import num_cores
from detector.training.distribution import ALONE, Ranks

USEFUL_WORKERS = 8  # of one process: more load no faster than a GPU trains


def build_device(device: str, ranks: Ranks = ALONE) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; each rank of a machine has its own GPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.num_ranks > 1 and device.startswith("cuda"):
        if device != "cuda":
            raise ConfigError(f"device={device} is one device, not one for each process")
        # A scheduler may show each process its own GPU alone.
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
    """Each of several processes needs a GPU of its own, unless all are to use the CPU.

    Raises:
        ConfigError: there are not as many.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return
    if device not in ("auto", "cuda"):
        raise ConfigError(f"device={device} is one device, not devices={devices}")
    if devices > torch.cuda.device_count():
        raise ConfigError(f"devices={devices}: this machine has {torch.cuda.device_count()}")


def build_num_workers(num_workers: int | str, device: torch.device, ranks: Ranks = ALONE) -> int:
    """The processes that load images for one that trains or detects.

    `auto` is none on a CPU, which they would share: what an image costs is paid there in any case,
    and its way between processes on top. Beside a GPU it is this process's share of the cores, as
    far as they help: at the 230 images/s a core of docs/benchmarks.md, eight load 1800.
    """
    if num_workers != "auto":
        return int(num_workers)
    share = num_cores() // ranks.num_local
    return 0 if device.type == "cpu" else min(max(share, 1), USEFUL_WORKERS)


def build_precision(precision: str) -> torch.dtype:
    """The dtype of autocast; float32 means none.

    Raises:
        ConfigError: the precision is unknown.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision not in dtypes:
        raise ConfigError(f"precision={precision} is none of {', '.join(dtypes)}")
    return dtypes[precision]
