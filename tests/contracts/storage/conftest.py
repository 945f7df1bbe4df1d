"""Gives the suite each engine in turn."""

import os
from collections.abc import Iterator

import pytest
from storage_engines import ENGINES, Storage


@pytest.fixture(scope="module", params=sorted(ENGINES))
def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Storage]:
    """An engine with an empty pool, shared by the tests of a module."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with ENGINES[request.param](tmp_path_factory.mktemp(request.param)) as made:
        yield made
