"""Distributed training: the rank of this process, and the communication between all ranks.

A process learns its rank from the environment variables RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. torchrun, `launch.py` and submitit set them; for a
task that srun starts they are derived from SLURM's own variables. A process without any of these
is the only rank, and nothing here communicates.
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


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: the rank of this process, 0 <= rank < num_ranks. Rank 0 records and saves.
        local_rank: the rank among the processes of this machine, which is also its GPU's number.
        num_local: the number of ranks on this machine.
        store: a key-value store for messages between ranks that none of them waits for.
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
        """Return the mean over all ranks, on each rank."""
        if self.num_ranks > 1:
            dist.all_reduce(values)
            values = values / self.num_ranks
        return values

    def all_gather(self, item: T) -> list[T]:
        """Return the items of all ranks, ordered by rank, on each rank."""
        if self.num_ranks == 1:
            return [item]
        items: list[T] = [item] * self.num_ranks
        dist.all_gather_object(items, item)
        return items

    def gather(self, item: T) -> list[T]:
        """Return the items of all ranks, ordered by rank, on the first rank; [] on the others."""
        if self.num_ranks == 1:
            return [item]
        items = [item] * self.num_ranks if self.is_first else None
        dist.gather_object(item, items)
        return items or []

    def broadcast(self, item: T) -> T:
        """Return the first rank's item, on each rank."""
        if self.num_ranks == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items)
        return items[0]

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Copy the first rank's buffers, such as batch norm's running means, to all ranks."""
        if self.num_ranks > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until all ranks have called this.

        Args:
            meanwhile: called repeatedly while this rank waits. Signals are handled between two
                calls; a blocking wait for other ranks would not handle them.
        """
        if self.num_ranks == 1:
            return
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        while not work.is_completed():
            meanwhile()
            time.sleep(0.01)
        work.wait()

    def post(self, word: str) -> None:
        """Post a word that all ranks can see by `is_posted`."""
        if self.store is not None:
            self.store.add(word, 1)

    def is_posted(self, word: str) -> bool:
        """Return whether any rank has posted the word."""
        return self.store is not None and self.store.add(word, 0) > 0

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block in the first process of each machine, then in the others.

        So the first process can download or generate files for the others of its machine.
        """
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the model so that its backward pass averages the gradients over the ranks."""
        if self.num_ranks == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            model,
            device_ids=devices,
            broadcast_buffers=False,  # training reads none of them; `broadcast_buffers` does it
            gradient_as_bucket_view=True,
            # Otherwise DDP rearranges its gradient buckets after a process's first step. With three
            # or more ranks the first step after a resume would then sum the gradients in another
            # order than the same step of an uninterrupted run. On CUDA, where equal bits are not
            # promised, this would cost time in every step. A parameter's requires_grad must not
            # change from here on.
            find_unused_parameters=device.type == "cpu",
        )


SINGLE_PROCESS = Ranks()


def without_averaging(model: nn.Module) -> AbstractContextManager[None]:
    """Accumulate gradients on this rank only: a backward pass within does not average them."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def ranks_of_environment() -> Ranks:
    """Read the rank of this process from its environment."""
    if "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        import submitit  # installed by the extra `slurm`

        if submitit.JobEnvironment().num_tasks > 1:
            # Each process chooses its GPU by its local rank.
            environment = submitit.helpers.TorchDistributedEnvironment()
            environment.export(set_cuda_visible_devices=False)
    if "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        os.environ.update(_environment_of_srun(os.environ))
    if "WORLD_SIZE" not in os.environ:
        return SINGLE_PROCESS
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, num_ranks, local_rank, num_local = (int(os.environ[name]) for name in names)
    return Ranks(rank, num_ranks, local_rank, num_local)


def _environment_of_srun(slurm: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that torchrun would set, for a task that srun started.

    The first node of the job has the first rank.
    """
    command = ["scontrol", "show", "hostnames", slurm["SLURM_STEP_NODELIST"]]
    nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    # The tasks per node as SLURM abbreviates them: 2(x3),1 stands for 2, 2, 2, 1.
    counts = [
        int(number)
        for part in slurm["SLURM_STEP_TASKS_PER_NODE"].split(",")
        for number, _, times in [part.rstrip(")").partition("(x")]
        for _ in range(int(times or 1))
    ]
    # Different steps of a job, and different jobs on a machine, get different ports.
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
def joined(timeout: float) -> Iterator[Ranks]:
    """Join the process group of all ranks.

    Args:
        timeout: the seconds for which a rank waits for another rank before it fails.

    Yields:
        This process's place among the ranks.
    """
    ranks = ranks_of_environment()
    if ranks.num_ranks == 1:
        yield ranks
        return
    shares, restarts = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_MAX_RESTARTS"
    if os.environ.get(shares) == "True" and int(os.environ.get(restarts, 0)) and ranks.is_first:
        log.warning(
            "after a restart by torchrun, processes may find the addresses of the former ones in "
            "its store, and fail (pytorch issue 135712): call it with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )
    # Tensors on a GPU go through NCCL, everything else through gloo.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = timedelta(seconds=timeout)
    store, rank, num_ranks = next(rendezvous("env://", timeout=limit))
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=limit)
    yield replace(ranks, store=dist.PrefixStore("words", store))
    dist.destroy_process_group()  # not after an error, which ends the process, and so the others
