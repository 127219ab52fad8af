"""Imports the application once and then forks a training process for each request.

Each line on stdin is a request in JSON, and is answered by one line on stdout. A list (the file for
the output, then the overrides of the command line) starts a process and is answered by its process
id. A number, a process id, waits for that process and is answered by its exit code, or by the
negative number of the signal that ended it.
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train  # noqa: E402
from detector import entry  # noqa: E402
from detector.commands import train as _  # noqa: E402, F401


def run(output: str, *overrides: str) -> None:
    """In the forked child, do what `python train.py OVERRIDES` does, in a new process group."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.argv = ["train.py", *overrides]
    code = 0
    try:
        entry.run(train.main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            print(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            run(*request)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
