"""The fixture that starts training in other processes."""

from collections.abc import Iterator

import pytest
from runs import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Start training processes; the tests of a module share their generated images."""
    runs = Runs(tmp_path_factory.mktemp("cache"))
    yield runs
    runs.close()
