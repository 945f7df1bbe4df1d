"""Gives the suite each engine in turn, one at a time."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from storage_engines import ENGINES, Storage, standing

_STANDING: list[ExitStack] = []


@pytest.fixture(scope="session", params=sorted(ENGINES))
def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Storage]:
    """A system of the engine, which all its tests share; each makes groups of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with ExitStack() as stack:
        _STANDING.append(stack)
        yield stack.enter_context(standing(request.param, tmp_path_factory.mktemp(request.param)))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The last system ends with the suite and not with the session: some are whole machines."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        for stack in _STANDING:
            stack.close()
