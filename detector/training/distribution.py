"""Several processes that train one model: who this one is, and what they tell each other.

A process learns it from its environment, which torchrun, `launch.py` and, through submitit, SLURM
set: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. A process without
them is alone, and everything here does nothing to what it is given.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: of this process, 0 <= rank < num_ranks; the first one records and saves.
        local_rank: among those of its machine: the number of its GPU.
        num_local: how many there are on its machine.
    """

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    num_local: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, on each."""
        if self.num_ranks > 1:
            dist.all_reduce(values)
            values = values / self.num_ranks
        return values

    def all_gather(self, item: T) -> list[T]:
        """What each rank gave, by rank, on each."""
        if self.num_ranks == 1:
            return [item]
        items: list[T] = [item] * self.num_ranks
        dist.all_gather_object(items, item)
        return items

    def gather(self, item: T) -> list[T]:
        """What each rank gave, by rank, on the first; nothing on the others."""
        if self.num_ranks == 1:
            return [item]
        items = [item] * self.num_ranks if self.is_first else None
        dist.gather_object(item, items)
        return items or []

    def broadcast(self, item: T) -> T:
        """What the first rank gave, on each."""
        if self.num_ranks == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items)
        return items[0]

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give every rank the first one's buffers, such as the means of a batch norm."""
        if self.num_ranks > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.all_gather(None)

    @contextmanager
    def one_of_machine_first(self) -> Iterator[None]:
        """One process of each machine goes ahead, to fetch or make files for the others."""
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, its gradients averaged over the ranks in the backward."""
        if self.num_ranks == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


ALONE = Ranks()


def without_averaging(model: nn.Module) -> AbstractContextManager[None]:
    """Backwards within add to the gradients of this rank alone, as accumulation needs."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def ranks_of_environment() -> Ranks:
    """Who this process is among how many."""
    if "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        import submitit  # of the extra slurm

        if submitit.JobEnvironment().num_tasks > 1:
            # Each process chooses its GPU by its local rank.
            environment = submitit.helpers.TorchDistributedEnvironment()
            environment.export(set_cuda_visible_devices=False)
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Ranks(*(int(os.environ[name]) for name in names))


@contextmanager
def joined() -> Iterator[Ranks]:
    """Find the other ranks, on whatever device they compute."""
    ranks = ranks_of_environment()
    if ranks.num_ranks == 1:
        yield ranks
        return
    # What is no tensor of a GPU goes through gloo.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield ranks
    dist.destroy_process_group()  # not after an error: it ends the process, and all others with it
