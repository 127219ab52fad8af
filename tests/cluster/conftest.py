"""Fixtures for the tests of clusters: a time limit, and an environment with a shared cache."""

import faulthandler
import os
import sys
from collections.abc import Iterator

import pytest

LIMIT = 240  # seconds for a test and its fixtures; every wait in a test has a shorter limit


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """After `LIMIT` seconds, print where the test hangs, and end the whole pytest command."""
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment for training: one thread per process, and one cache of images."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
