"""Simulates two machines on a network by network namespaces, each with an address and a host name.

They share the disk and the processors. Each is connected to a switch by a cable that can be pulled:
then packets are lost without an error.
"""

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import IO

ADDRESSES = {"left": "10.213.0.1", "right": "10.213.0.2"}


def lacking() -> str | None:
    """Return the reason why no such machines can be made here, or None."""
    if os.getuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "iproute2 is not installed"
    probe = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


class Machines:
    """A context manager that makes the machines `left` and `right`.

    On exit the processes on them are killed and the machines are removed.
    """

    def __init__(self) -> None:
        self._prefix = f"dfrcnn{os.getpid()}"
        self._stack = ExitStack()
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Machines":
        with ExitStack() as stack:
            for name in ("switch", *ADDRESSES):
                _ip("netns", "add", self._space(name))
                stack.callback(_ip, "netns", "delete", self._space(name))
            _ip("-n", self._space("switch"), "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._space("switch"), "link", "set", "bridge", "up")
            for name, address in ADDRESSES.items():
                space = self._space(name)
                # `ip netns exec` mounts this file as /etc/hosts.
                hosts = Path("/etc/netns") / space / "hosts"
                stack.callback(shutil.rmtree, hosts.parent)
                hosts.parent.mkdir(parents=True)
                lines = [f"{of} {who}\n" for who, of in ADDRESSES.items()]
                hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
                peer = ["peer", "name", name, "netns", self._space("switch")]
                _ip("-n", space, "link", "add", "net0", "type", "veth", *peer)
                _ip("-n", space, "address", "add", f"{address}/24", "dev", "net0")
                _ip("-n", space, "link", "set", "net0", "up")
                _ip("-n", space, "link", "set", "lo", "up")
                _ip("-n", self._space("switch"), "link", "set", name, "up")
                self.plug(name)
            stack.callback(self._kill_all)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(
        self, name: str, *command: str, env: dict[str, str], output: IO[str]
    ) -> subprocess.Popen[str]:
        """Start a command on a machine, in a process group of its own."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._space(name), *named, *command],
            env=env,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def processes(self, name: str) -> list[int]:
        """Return the ids of all processes that run on a machine."""
        found = subprocess.run(
            ["ip", "netns", "pids", self._space(name)], check=True, capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def kill(self, name: str) -> None:
        """Kill all processes on a machine, as a power cut does.

        Unlike in a power cut, the kernel closes their connections.
        """
        while pids := self.processes(name):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for process in self._started:
                process.poll()

    def pull(self, name: str) -> None:
        """Pull a machine's cable out of the switch."""
        _ip("-n", self._space("switch"), "link", "set", name, "nomaster")

    def plug(self, name: str) -> None:
        """Plug a machine's cable into the switch."""
        _ip("-n", self._space("switch"), "link", "set", name, "master", "bridge")

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _kill_all(self) -> None:
        for name in ADDRESSES:
            self.kill(name)
        for process in self._started:
            process.wait(10)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=20)
