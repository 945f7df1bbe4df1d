"""A pool's room counts what its volume group can still give, and it gets some in time."""

import pytest

from atoll.storage.drivers.san.helper import lvm
from atoll.storage.drivers.san.helper.pool import Usage
from atoll.storage.drivers.san.helper.volumes import Volumes

GIB = 1 << 30
EXTENT = 4 << 20


class Pool:
    volume_group, pool = "vg", "pool"

    def __init__(self, used_bytes: int, metadata: float = 0.1) -> None:
        self.total_bytes = 10 * GIB
        self.used_bytes = used_bytes
        self.metadata = metadata

    def usage(self) -> Usage:
        return Usage(self.total_bytes, self.used_bytes, self.metadata)


def volumes(pool: Pool, monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> Volumes:
    total = pool.total_bytes + free_bytes

    def grow(_: str, __: str, extra_bytes: int) -> None:
        assert extra_bytes % EXTENT == 0
        pool.total_bytes += extra_bytes

    monkeypatch.setattr(lvm, "group", lambda _: lvm.Group(total, total - pool.total_bytes, EXTENT))
    monkeypatch.setattr(lvm, "grow_pool", grow)
    made = object.__new__(Volumes)
    made.pool, made._asked = pool, None
    return made


def test_room_is_the_pools_and_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(4 * GIB)
    assert volumes(pool, monkeypatch, 6 * GIB).room() == (16 * GIB, 12 * GIB)
    assert pool.total_bytes == 10 * GIB


@pytest.mark.parametrize(("free", "grown"), [(6 * GIB, 2 * GIB), (GIB, GIB), (0, 0)])
def test_a_pool_that_fills_grows_while_there_is_room(
    monkeypatch: pytest.MonkeyPatch, free: int, grown: int
) -> None:
    pool = Pool(8 * GIB)
    total, left = volumes(pool, monkeypatch, free).room()
    assert (total, left) == (10 * GIB + free, 2 * GIB + free)
    assert pool.total_bytes == 10 * GIB + grown // EXTENT * EXTENT


def test_without_metadata_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(GIB, metadata=0.95)
    total, left = volumes(pool, monkeypatch, 0).room()
    assert left == int(total * (1 - 0.95))
