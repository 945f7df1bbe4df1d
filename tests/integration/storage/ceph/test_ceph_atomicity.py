"""A snapshot is one instant for whoever writes to several LUNs over iSCSI."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atoll.storage.targets.tgt.answers import while_answers_held
from atoll_lab.iscsi import IscsiLun
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from ceph_system import CephSystem, new_id

pytestmark = pytest.mark.needs_root

LUNS = 3


@contextmanager
def writing(sessions: list[IscsiLun], *, flush: bool) -> Iterator[OrderedWriter]:
    writer = OrderedWriter(sessions, flush=flush)
    writer.start()
    try:
        yield writer
    finally:
        writer.end()


def newest_of(system: CephSystem, snapshot: str, volumes: list[str]) -> list[int]:
    found = []
    for volume in volumes:
        reader = system.backend.open_snapshot(volume, snapshot)
        found.append(newest(reader))
        reader.close()
    return found


@pytest.mark.parametrize(
    ("flush", "snapshots"),
    [
        (False, 15),
        (True, 10),
        pytest.param(False, 200, marks=pytest.mark.soak),
        pytest.param(True, 100, marks=pytest.mark.soak),
    ],
)
def test_every_snapshot_is_one_instant(system: CephSystem, flush: bool, snapshots: int) -> None:
    volumes = [system.volume() for _ in range(LUNS)]
    sessions = system.serve(*volumes)
    seen = []
    with writing(sessions, flush=flush) as writer:
        for number in range(snapshots):
            before = writer.written
            snapshot = new_id()
            times = system.backend.take_snapshot(system.group, snapshot, volumes)
            after = writer.written
            assert times.pause_seconds > 0
            numbers = newest_of(system, snapshot, volumes)
            assert is_one_instant(numbers), f"snapshot {number} holds {numbers}"
            assert before <= numbers[-1] <= after + 1, "the snapshot is not of its time"
            seen.append(numbers[0])
    for session in sessions:
        session.close()
    assert seen == sorted(seen)
    assert seen[-1] - seen[0] >= snapshots, "the writer hardly wrote, so nothing was tested"


@pytest.mark.parametrize("held", [True, False])
def test_it_is_the_barrier_that_makes_it_one(system: CephSystem, held: bool) -> None:
    """Images snapshot one by one, slowly: whole behind the barrier, and only there."""
    volumes = [system.volume() for _ in range(LUNS)]
    sessions = system.serve(*volumes)
    snapshot = new_id()
    with (
        writing(sessions, flush=False) as writer,
        system.backend._sidecars.borrowed() as sidecar,
        system.backend._targets.process(system.group) as process,
    ):

        def one_by_one() -> None:
            for volume in volumes:
                sidecar.call("prepare_snapshot", snapshot=snapshot, volumes=[volume])
                sidecar.call("take_snapshot", snapshot=snapshot, limit_seconds=60)
                sidecar.call("finish_snapshot")
                reached = writer.written
                for _ in range(20 if held else 5000):
                    writer.join(timeout=0.01)
                    if writer.written > reached + 5 or writer.failure:
                        break

        while_answers_held(process if held else None, one_by_one, limit_seconds=60)
    for session in sessions:
        session.close()
    assert is_one_instant(newest_of(system, snapshot, volumes)) == held
