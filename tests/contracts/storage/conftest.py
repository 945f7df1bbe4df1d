"""Gives the suite each engine in turn, one at a time."""

import os
from collections.abc import Iterator

import pytest
from storage_engines import ENGINES, Storage, standing


@pytest.fixture(scope="session", params=sorted(ENGINES))
def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Storage]:
    """A system of the engine, which all its tests share; each makes groups of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with standing(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made
