"""Fixtures for all tests, and a report of the tests that this machine cannot run."""

import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core, so torch gets a single thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from detector.data.loading import kill_workers  # noqa: E402

# All tests of a file run in the same process. These files take longest and start first: if one of
# them started last, the other processes would have nothing left to do meanwhile.
LONGEST = [
    "test_train.py",
    "test_ranks.py",
    "test_interruptions.py",
    "test_soak.py",
    "test_cpu_kernels.py",
    "test_detector_export.py",
    "test_foreign_weights.py",
    "test_deform_conv.py",
    "test_cuda_emulated.py",
    "test_benchmark_training.py",
]
LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not here: {folder} does not exist")
    return folder


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the files in LONGEST first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    """Exclude everything imported so far from garbage collection, which makes it faster."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill the loader workers that tests left behind, which would delay the end (see loading.py),
    and pass on the number of tests that were left out.
    """
    kill_workers()
    left_out = getattr(session.config, "left_out", Counter())
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(left_out)
    else:
        session.config.stash.setdefault(LEFT_OUT, left_out)


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist, in the process that starts workers
def pytest_testnodedown(node: Any) -> None:
    """Store the numbers of tests that a worker left out; they are the same for every worker."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[LEFT_OUT] = Counter(left_out)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a line about the tests that were left out."""
    left_out = config.stash.get(LEFT_OUT, Counter())
    if left_out:
        counts = ", ".join(f"{number} for want of {what}" for what, number in left_out.items())
        terminalreporter.write_line(f"Tests left out here: {counts}.")
