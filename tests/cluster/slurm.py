"""Runs SLURM on this machine: munge, one controller, and a slurmd for each of several nodes.

It uses its own keys, ports and folders, and leaves nothing behind. Its jobs see an /etc/hosts of
their own with the nodes' names. It starts without jobs, and has no accounting.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire: seconds that a requeued job must wait; the default is two minutes.
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid

# A container has no systemd, no cgroups and no database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

# A node that does not answer for so many seconds is down, and its jobs are requeued.
SlurmdTimeout=10
KillWait=5
ReturnToService=2

{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=30
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=30
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"


def lacking() -> str | None:
    """Return the reason why SLURM cannot run here, or None."""
    if os.getuid() != 0:
        return "a SLURM of its own needs root"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return f"{', '.join(missing)}: not installed (slurm-wlm, munge)" if missing else None


class Slurm:
    """A context manager that runs a cluster, and on exit ends its jobs and daemons.

    Attributes:
        nodes: the names of the nodes; each node has one processor.
        environment: the environment in which SLURM's commands reach this cluster.
    """

    def __init__(self, folder: Path, environment: dict[str, str], *, num_nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, num_nodes + 1)]
        self.environment = environment | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Slurm":
        host = socket.gethostname().partition(".")[0]
        port, *ports = _free_ports(1 + len(self.nodes))
        nodes = [
            NODE.format(name=name, host=host, port=of)
            for name, of in zip(self.nodes, ports, strict=True)
        ]
        text = CONFIGURATION.format(
            host=host, port=port, folder=self.folder, nodes="\n".join(nodes)
        )
        (self.folder / "slurm.conf").write_text(text)
        hosts = Path("/etc/hosts").read_text() + f"127.0.0.1 {' '.join(self.nodes)}\n"
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._stack.callback(self._end)
        try:
            munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
            munged += [f"--socket={self.folder}/munge.sock", f"--seed-file={self.folder}/seed"]
            munged += [
                f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munge.log",
            ]
            self._start("munged", *munged)
            _await(lambda: (self.folder / "munge.sock").exists(), "munged")
            self._start("slurmctld", "slurmctld", "-D", "-c")
            for name in self.nodes:
                (self.folder / f"spool-{name}").mkdir()
                self.start_node(name)
            _await(lambda: self._states() == ["idle"] * len(self.nodes), "the nodes")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, *command: str, limit: float = 30) -> str:
        """Run a command, which must succeed, and return its output."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=limit
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """Return the fields that scontrol shows for a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_node(self, name: str) -> None:
        with_hosts = f'mount --bind {self.folder}/hosts /etc/hosts && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", with_hosts, "sh"]
        self._start(name, *command, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str, *, with_jobs: bool) -> None:
        """Kill the slurmd of a node.

        Args:
            with_jobs: also kill the node's jobs, as a power cut does. Otherwise they live on, as on
                a machine that is cut off from the network.
        """
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait(10)
        if with_jobs:
            self._kill(lambda environ, command: command.startswith("slurmstepd"))
            self._kill(lambda environ, command: f"SLURMD_NODENAME={name}" in environ)

    def processes(self, word: str, *, but: str) -> list[int]:
        """Return the ids of job processes with `word` and without `but` in their command line."""
        return [
            pid
            for pid, environ, command in self._processes()
            if word in command and but not in command and "SLURM_JOB_ID=" in "".join(environ)
        ]

    def _processes(self) -> Iterator[tuple[int, list[str], list[str]]]:
        """Yield the id, environment and command line of every process of this cluster."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                texts = [(path / name).read_bytes() for name in ("environ", "cmdline")]
            except OSError:  # it has ended, or belongs to another user
                continue
            environ, command = (text.decode(errors="replace").split("\0") for text in texts)
            if f"SLURM_CONF={self.folder}/slurm.conf" in environ:
                yield int(path.name), environ, command

    def _kill(self, is_meant: Callable[[list[str], str], bool]) -> None:
        """Kill the processes of this cluster for which `is_meant(environment, program)` is true."""
        for pid, environ, command in self._processes():
            if is_meant(environ, command[0]):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as file:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def _states(self) -> list[str]:
        command = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%t"]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30
        )
        return done.stdout.split()

    def _end(self) -> None:
        self._kill(lambda environ, command: True)
        for daemon in self._daemons.values():
            daemon.wait(10)


def _await(condition: Callable[[], bool], what: str, limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not ready after {limit} s"
        time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
