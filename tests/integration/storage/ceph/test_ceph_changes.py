"""What changed between two snapshots: never a byte missing, whatever was done in between."""

import itertools
import os
import subprocess
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from atoll.model.extents import Extent, total_bytes
from atoll.storage.drivers.ceph import backend
from atoll.storage.drivers.ceph.names import image_name
from atoll_lab.ceph import MiniCluster
from atoll_lab.iscsi import IscsiLun
from ceph_system import MIB, CephSystem

pytestmark = pytest.mark.needs_root

SIZE = 8 * MIB  # two objects
SECTOR = 512


@dataclass
class Life:
    """A volume, what its snapshots held when they were taken, and how to do things to it."""

    cluster: MiniCluster
    system: CephSystem
    volume: str
    size_bytes: int = SIZE
    contents: dict[str, bytes] = field(default_factory=dict)
    session: IscsiLun | None = None

    def write(self, place: int, sectors: int) -> None:
        offset = place * SECTOR % (self.size_bytes - sectors * SECTOR)
        self._open().write(offset // SECTOR * SECTOR, os.urandom(sectors * SECTOR))

    def discard(self, place: int, sectors: int) -> None:
        self.close()
        offset = place * SECTOR % (self.size_bytes - sectors * SECTOR)
        discard(self.cluster, self.system, self.volume, offset, sectors * SECTOR)

    def grow(self, place: int, sectors: int) -> None:
        self.size_bytes += 4 * MIB
        self.system.backend.grow_volume(self.system.group, self.volume, self.size_bytes)
        self.close()

    def snapshot(self, place: int, sectors: int) -> None:
        content = self._open().read(0, self.size_bytes)
        self.contents[self.system.snapshot(self.volume)] = content

    def revert(self, place: int, sectors: int) -> None:
        self.close()
        if self.contents:
            chosen = list(self.contents)[place % len(self.contents)]
            self.system.backend.revert(self.system.group, chosen, [self.volume])
            self.size_bytes = len(self.contents[chosen])
            assert self._open().read(0, self.size_bytes) == self.contents[chosen]

    def flatten(self, place: int, sectors: int) -> None:
        spec = f"{self.cluster.pool}/{image_name(self.system.place.id, self.volume)}"
        if "parent:" in self.cluster.rbd("info", spec):
            self.cluster.rbd("flatten", "--no-progress", spec)

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None
        self.system.backend.serve(self.system.group, [])

    def _open(self) -> IscsiLun:
        if self.session is None:
            (self.session,) = self.system.serve(self.volume)
        return self.session


DISCARD = """
import sys, rados, rbd
conf, pool, image, offset, length = sys.argv[1:]
settings = {"rbd_skip_partial_discard": "false"}
with rados.Rados(conffile=conf, rados_id="admin", conf=settings) as cluster:
    with cluster.open_ioctx(pool) as ioctx, rbd.Image(ioctx, image) as opened:
        opened.discard(int(offset), int(length))
"""


def discard(
    cluster: MiniCluster, system: CephSystem, volume: str, offset: int, length: int
) -> None:
    """By librbd: what tgt has for RBD cannot unmap."""
    name = image_name(system.place.id, volume)
    arguments = [cluster.conf, cluster.pool, name, offset, length]
    subprocess.run(["/usr/bin/python3", "-c", DISCARD, *map(str, arguments)], check=True)


def check(life: Life) -> None:
    """Every pair of snapshots, against their contents."""
    for older, newer in itertools.combinations(life.contents, 2):
        before, after = life.contents[older], life.contents[newer]
        listed = list(life.system.backend.changed_extents(life.volume, older, newer))
        assert all(a.end < b.offset for a, b in itertools.pairwise(listed))
        assert all(e.offset >= 0 and e.length > 0 and e.end <= len(after) for e in listed)
        image = bytearray(before[: len(after)] + bytes(max(0, len(after) - len(before))))
        for extent in listed:
            image[extent.offset : extent.end] = after[extent.offset : extent.end]
        assert bytes(image) == after


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "write",
                "write",
                "write",
                "discard",
                "snapshot",
                "snapshot",
                "revert",
                "grow",
                "flatten",
            ]
        ),
        st.integers(0, 1 << 16),
        st.sampled_from([1, 7, 8, 128, 3000]),
    ),
    min_size=4,
    max_size=14,
)


@pytest.mark.parametrize(
    "examples", [3, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("ancestors", [0, 1, 2])
def test_no_byte_is_missing(
    cluster: MiniCluster, system: CephSystem, ancestors: int, examples: int
) -> None:
    """`ancestors` volumes were cloned, one of the other, to get the one that changes."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        # Smaller examples would take longer to find than they save.
        phases=[Phase.explicit, Phase.generate],
    )
    @given(steps=STEPS)
    def run(steps: list[tuple[str, int, int]]) -> None:
        volume = system.volume(SIZE)
        for generation in range(ancestors):
            (session,) = system.serve(volume)
            session.write(generation * MIB, os.urandom(2 * MIB))
            session.close()
            discard(cluster, system, volume, generation * MIB + 4096, 64 << 10)
            volume = system.clone(system.snapshot(volume), volume)
        life = Life(cluster, system, volume)
        try:
            life.snapshot(0, 0)
            for name, place, sectors in steps:
                getattr(life, name)(place, sectors)
            life.snapshot(0, 0)
            for snapshot, content in life.contents.items():
                assert system.read(volume, snapshot) == content
            check(life)
        finally:
            life.close()
            system.clear()

    run()


def test_it_lists_what_was_written_and_no_more(cluster: MiniCluster, system: CephSystem) -> None:
    volume = system.volume(64 * MIB)
    (session,) = system.serve(volume)
    session.write(0, os.urandom(8 * MIB))
    older = system.snapshot(volume)
    wanted = [Extent(4096, 4096), Extent(MIB, 512), Extent(4 * MIB - 512, 1024)]
    for extent in wanted:
        session.write(extent.offset, os.urandom(extent.length))
    session.close()
    system.backend.serve(system.group, [])
    discard(cluster, system, volume, 6 * MIB, 4096)
    wanted.append(Extent(6 * MIB, 4096))
    newer = system.snapshot(volume)
    assert list(system.backend.changed_extents(volume, older, newer)) == wanted


def test_what_a_volume_grew_by_is_listed_as_far_as_it_holds_data(
    cluster: MiniCluster, system: CephSystem
) -> None:
    volume = system.volume(8 * MIB)
    older = system.snapshot(volume)
    system.backend.grow_volume(system.group, volume, 64 * MIB)
    (session,) = system.serve(volume)
    session.write(40 * MIB, b"new!" * 1024)
    session.write(50 * MIB, b"gone" * 1024)
    session.close()
    system.backend.serve(system.group, [])
    discard(cluster, system, volume, 48 * MIB, 4 * MIB)
    newer = system.snapshot(volume)
    listed = list(system.backend.changed_extents(volume, older, newer))
    assert listed == [Extent(40 * MIB, 4096)]
    assert total_bytes(listed) == 4096


def test_what_reaches_over_windows_is_one(
    system: CephSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_WINDOW_BYTES", 3 * MIB)
    volume = system.volume(16 * MIB)
    (session,) = system.serve(volume)
    session.write(0, os.urandom(16 * MIB))
    older = system.snapshot(volume)
    session.write(2 * MIB, os.urandom(5 * MIB))
    session.write(9 * MIB, os.urandom(MIB))
    newer = system.snapshot(volume)
    session.close()
    assert list(system.backend.changed_extents(volume, older, newer)) == [
        Extent(2 * MIB, 5 * MIB),
        Extent(9 * MIB, MIB),
    ]
    # Whoever stops listening leaves nothing open, and others are served.
    listening = system.backend.changed_extents(volume, older, newer)
    assert next(listening) == Extent(2 * MIB, 5 * MIB)
    listening.close()
    assert len(list(system.backend.changed_extents(volume, older, newer))) == 2
