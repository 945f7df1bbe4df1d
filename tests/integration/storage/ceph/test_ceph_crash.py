"""Helpers, daemons and the whole cluster die at the worst moment."""

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress

import pytest

from atoll.model.errors import StorageUnreachableError
from atoll.storage.drivers.ceph.names import image_name, snapshot_name
from atoll.storage.sidecar.client import Sidecar
from atoll_lab.ceph import MiniCluster
from atoll_lab.iscsi import IscsiError
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from ceph_system import MIB, CephSystem, new_id

pytestmark = pytest.mark.needs_root


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("call", "delay_seconds"),
    [
        ("take_snapshot", 0.01),
        ("grow_volume", 0.01),
        *(
            pytest.param(call, delay_seconds, marks=pytest.mark.soak)
            for call in ("take_snapshot", "clone", "delete_snapshot", "grow_volume")
            for delay_seconds in (0.0, 0.01, 0.03)
        ),
    ],
)
def test_a_helper_killed_in_a_call_leaves_a_call_that_can_be_repeated(
    system: CephSystem, monkeypatch: pytest.MonkeyPatch, call: str, delay_seconds: float
) -> None:
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, b"kept" * 1024)
    snapshot, copy = new_id(), new_id()
    backend = system.backend

    def act() -> None:
        if call == "take_snapshot":
            backend.take_snapshot(system.group, snapshot, [volume])
        elif call == "clone":
            backend.clone(snapshot, system.group, {volume: copy}, {copy: "group/copy"})
        elif call == "delete_snapshot":
            backend.delete_snapshot(snapshot, [volume])
        else:
            backend.grow_volume(system.group, volume, 32 * MIB)

    if call in ("clone", "delete_snapshot"):
        backend.take_snapshot(system.group, snapshot, [volume])
    ask = Sidecar.call
    killers = []

    def killed(self: Sidecar, name: str, **arguments: object) -> object:
        if name == call:
            killers.append(threading.Timer(delay_seconds, kill, [self._process]))
            killers[-1].start()
        return ask(self, name, **arguments)

    monkeypatch.setattr(Sidecar, "call", killed)
    with suppress(StorageUnreachableError):
        act()
    monkeypatch.setattr(Sidecar, "call", ask)
    for killer in killers:
        killer.join()
    act()
    assert session.read(0, 4096) == b"kept" * 1024
    session.write(4096, b"more" * 1024)
    session.close()
    if call in ("take_snapshot", "clone"):
        assert system.read(volume, snapshot)[:4096] == b"kept" * 1024
    assert backend.snapshots() == ([] if call in ("delete_snapshot", "grow_volume") else [snapshot])
    backend.delete_volume(system.group, copy)


def test_a_snapshot_that_a_killed_helper_asked_for_and_comes_late_is_not_taken_for_this_one(
    cluster: MiniCluster, system: CephSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, b"late" * 1024)
    snapshot = new_id()
    ask = Sidecar.call

    def late(self: Sidecar, name: str, **arguments: object) -> object:
        answer = ask(self, name, **arguments)
        if name == "prepare_snapshot":
            image = f"{cluster.pool}/{image_name(system.place.id, volume)}"
            cluster.rbd("snap", "create", f"{image}@{snapshot_name(snapshot)}")
            session.write(0, b"this" * 1024)
        return answer

    monkeypatch.setattr(Sidecar, "call", late)
    system.backend.take_snapshot(system.group, snapshot, [volume])
    session.close()
    assert system.read(volume, snapshot)[:4096] == b"this" * 1024


def test_a_daemon_that_was_killed_does_not_keep_its_image(system: CephSystem) -> None:
    """For half a minute the cluster thinks that it is alive."""
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, b"held" * 1024)  # now it owns the image's lock
    kill_daemon(system)
    session.close()
    (session,) = system.serve(volume)
    assert session.read(0, 4096) == b"held" * 1024
    session.write(0, b"anew" * 1024)
    kill_daemon(system)
    session.close()
    system.backend.delete_volume(system.group, volume)
    assert system.backend.volumes() == {}


def test_a_daemon_that_the_cluster_shut_out_serves_again_when_presented_anew(
    cluster: MiniCluster, system: CephSystem
) -> None:
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, b"held" * 1024)
    name = f"{cluster.pool}/{image_name(system.place.id, volume)}"
    for watcher in json.loads(cluster.rbd("status", name, "--format", "json"))["watchers"]:
        cluster.ask("osd", "blocklist", "add", watcher["address"])
    with pytest.raises(IscsiError):
        for _ in range(100):  # until tgtd has heard of it
            session.write(0, b"lost" * 1024)
            time.sleep(0.1)
    session.close()
    system.backend.serve(system.group, [])
    (session,) = system.serve(volume)
    session.write(0, b"anew" * 1024)
    assert session.read(0, 4096) == b"anew" * 1024
    session.close()


def kill_daemon(system: CephSystem) -> None:
    with system.backend._targets.process(system.group) as process:
        process.signal(signal.SIGKILL)
        assert process.ended(20)


def test_a_power_cut_loses_nothing_that_was_acknowledged(
    cluster: MiniCluster, system: CephSystem
) -> None:
    volumes = [system.volume(), system.volume()]
    sessions = system.serve(*volumes)
    writer = OrderedWriter(sessions, flush=False)
    writer.start()
    try:
        wait_for(writer, 50)
        cluster.kill()
        time.sleep(1)
        cluster.start()
        wait_for(writer, writer.written + 50)  # the daemon lived, so it just goes on
    finally:
        cluster.kill()
        kill_daemon(system)
        with pytest.raises(IscsiError):
            writer.end()
        for session in sessions:
            session.close()
        cluster.start()
    reached = writer.written
    system.serve(*volumes)
    snapshot = system.snapshot(*volumes)
    found = []
    for volume in volumes:
        reader = system.backend.open_snapshot(volume, snapshot)
        found.append(newest(reader))
        reader.close()
    assert is_one_instant(found)
    assert found[-1] >= reached


def wait_for(writer: OrderedWriter, number: int) -> None:
    deadline = time.monotonic() + 100
    while writer.written < number:
        assert writer.failure is None
        assert time.monotonic() < deadline, f"the writer stands at {writer.written}"
        time.sleep(0.1)


def test_a_cluster_that_is_gone_is_told_of(cluster: MiniCluster, system: CephSystem) -> None:
    volume = system.volume()
    cluster.kill()
    try:
        with pytest.raises(StorageUnreachableError, match="ceph -s"):
            system.reopen().volumes()
    finally:
        cluster.start()
    assert volume in system.backend.volumes()
    assert os.listdir(system.place.run)
