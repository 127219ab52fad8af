"""What every test here has: a time limit, images that are kept, and a reason if it cannot run."""

import faulthandler
import os
import sys
from collections.abc import Iterator

import pytest

LIMIT = 240  # seconds for a test, its fixtures included; every wait within has a shorter one


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Beyond it the whole command ends, and says where it was."""
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of training: one thread a process, and generated images that are kept until the end."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
