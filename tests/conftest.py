"""Fixtures for every test, and what a run says of the tests that this machine cannot run."""

import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many as cores: torch is imported with one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from detector.data.loading import kill_workers  # noqa: E402

# A file stays with one process. These take longest and begin first: one that began last would keep
# that process busy while the others have nothing left.
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
    """Put those of LONGEST first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage looks through it again."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Workers of loaders that tests keep would hold up the end: they leave late, see loading.py."""
    kill_workers()
    left_out = getattr(session.config, "left_out", Counter())
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(left_out)
    else:
        session.config.stash.setdefault(LEFT_OUT, left_out)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, in the process that started the workers
def pytest_testnodedown(node: Any) -> None:
    """Every worker has left out the same."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[LEFT_OUT] = Counter(left_out)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line."""
    left_out = config.stash.get(LEFT_OUT, Counter())
    if left_out:
        counts = ", ".join(f"{number} for want of {what}" for what, number in left_out.items())
        terminalreporter.write_line(f"Tests left out here: {counts}.")
