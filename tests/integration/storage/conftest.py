"""Pools of the embedded engine on a loop-backed btrfs."""

import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.limits import Allowances
from atoll_lab.pool import create_loop_pool, destroy


@pytest.fixture(scope="session")
def btrfs_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted btrfs of 4 GiB, sparse."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = tmp_path_factory.mktemp("btrfs")
    try:
        yield create_loop_pool(directory, 4 << 30)
    finally:
        destroy(directory)


_NUMBERS = count()


@pytest.fixture
def pool(btrfs_mount: Path) -> Iterator[Path]:
    """The root of an empty pool of its own; its daemons are ended afterwards."""
    number = next(_NUMBERS)
    root = btrfs_mount / f"pool{number}"
    root.mkdir()
    create_pool(root, f"pool{number}")
    yield root
    engine = open_embedded(root)
    engine.stop()
    shutil.rmtree(engine.runtime_directory)


@pytest.fixture
def engine(pool: Path) -> ManagedEngine:
    """An engine over an empty pool that acknowledges from the host's cache."""
    return open_embedded(pool, Rules(Allowances(reserve_bytes=1 << 20)), durability="cache")
