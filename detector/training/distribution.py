"""Several processes that train one model: who this one is, and what they tell each other.

A process learns it from its environment, which torchrun, `launch.py` and, through submitit, SLURM
set: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. For a task of srun
they follow from SLURM's own. A process without them is alone, and everything here does nothing to
what it is given.
"""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

log = logging.getLogger(__name__)

T = TypeVar("T")

LIMIT = 1800.0  # seconds for which a rank waits for the others, unless it is told otherwise


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: of this process, 0 <= rank < num_ranks; the first one records and saves.
        local_rank: among those of its machine: the number of its GPU.
        num_local: how many there are on its machine.
        store: where a rank leaves word for the others, who look when they like.
    """

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    num_local: int = 1
    store: dist.Store | None = field(default=None, compare=False)

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

    def barrier(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until all ranks are here.

        Args:
            meanwhile: called again and again. A signal is seen between two calls, and not within
                what waits for other ranks.
        """
        if self.num_ranks == 1:
            return
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        while not work.is_completed():
            meanwhile()
            time.sleep(0.01)
        work.wait()

    def post(self, word: str) -> None:
        """Leave a word for the other ranks."""
        if self.store is not None:
            self.store.add(word, 1)

    def is_posted(self, word: str) -> bool:
        """Whether any rank has left it."""
        return self.store is not None and self.store.add(word, 0) > 0

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
        return DistributedDataParallel(
            model,
            device_ids=devices,
            gradient_as_bucket_view=True,
            # Else the gradients are laid out anew after the first step, and three or more ranks sum
            # them in another order in the first step of a run that goes on than in one that went.
            find_unused_parameters=device.type == "cpu",
        )


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
    if "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        os.environ.update(_environment_of_srun(os.environ))
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, num_ranks, local_rank, num_local = (int(os.environ[name]) for name in names)
    return Ranks(rank, num_ranks, local_rank, num_local)


def _environment_of_srun(slurm: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would set, for a task of srun. The first node has the first rank."""
    command = ["scontrol", "show", "hostnames", slurm["SLURM_STEP_NODELIST"]]
    nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    # Tasks per node as SLURM abbreviates them: 2(x3),1.
    counts = [
        int(number)
        for part in slurm["SLURM_STEP_TASKS_PER_NODE"].split(",")
        for number, _, times in [part.rstrip(")").partition("(x")]
        for _ in range(int(times or 1))
    ]
    # Steps of one job, and jobs of one machine, have ports of their own.
    port = 20_000 + (int(slurm["SLURM_JOB_ID"]) * 16 + int(slurm["SLURM_STEP_ID"])) % 12_000
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(counts[int(slurm["SLURM_NODEID"])]),
        "MASTER_ADDR": slurm.get("MASTER_ADDR", nodes[0]),
        "MASTER_PORT": slurm.get("MASTER_PORT", str(port)),
    }


@contextmanager
def joined(limit: float = LIMIT) -> Iterator[Ranks]:
    """Find the other ranks, on whatever device they compute.

    Args:
        limit: seconds for which a rank waits for another before it fails.
    """
    ranks = ranks_of_environment()
    if ranks.num_ranks == 1:
        yield ranks
        return
    # What is no tensor of a GPU goes through gloo.
    shares, restarts = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_MAX_RESTARTS"
    if os.environ.get(shares) == "True" and int(os.environ.get(restarts, 0)) and ranks.is_first:
        log.warning(
            "torchrun starts processes again with what its store holds of the former ones, which "
            "may fail (pytorch issue 135712): give it TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(seconds=limit)
    store, rank, num_ranks = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=timeout)
    yield replace(ranks, store=dist.PrefixStore("words", store))
    dist.destroy_process_group()  # not after an error: it ends the process, and all others with it
