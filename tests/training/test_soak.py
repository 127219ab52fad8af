"""The memory and the number of open files of a long run do not grow after its start."""

import time
from pathlib import Path

import pytest
from runs import LIMIT, Runs, lines, output, summary

SMALL = [
    "data.num_train=200",
    "data.image_size=32",
    "data.transform.train_min_sizes=[32]",
    "data.transform.min_size=32",
    "data.transform.max_size=32",
    "data.num_workers=1",
    "model.rpn_top_n_train=50",
    "model.rpn_top_n_test=50",
    "model.box_batch_size=8",
    "schedule.batch_size=2",
    "schedule.epochs=10",
    "checkpoint_every=25",
]


def memory_and_files(pid: int) -> tuple[int, int]:
    """Return the resident memory of a process in bytes, and the number of its open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = int(status.split("VmRSS:")[1].split()[0])
    return 1024 * kib, len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.slow
def test_1000_steps(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pid = runs.start(folder, *SMALL)
    warm, late = [], []
    deadline = time.monotonic() + 4 * LIMIT
    step = 0
    while step < 990:
        assert time.monotonic() < deadline, output(folder)
        step = max((line["step"] for line in lines(folder)), default=0)
        if 200 <= step < 500:
            warm.append(memory_and_files(pid))
        elif 690 <= step < 990:
            late.append(memory_and_files(pid))
        time.sleep(0.1)
    assert runs.wait(pid) == 0, output(folder)
    assert summary(folder)["status"] == "done"
    memory, late_memory = (max(memory for memory, _ in seen) for seen in (warm, late))
    # Images on their way from a worker are open files too, but not between epochs: use the minimum.
    files, late_files = (min(files for _, files in seen) for seen in (warm, late))
    print(f"{memory / 2**20:.1f} MiB, {files} files; later {late_memory / 2**20:.1f}, {late_files}")
    assert late_memory < 1.05 * memory
    assert late_files <= files
