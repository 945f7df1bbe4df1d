"""However a barrier's holder ends, the daemon runs again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.storage.drivers.embedded import btrfs, open_embedded
from atoll.storage.engine import ManagedEngine
from atoll.storage.targets.tgt import barrier
from atoll.storage.targets.tgt.barrier import BarrierBrokenError, while_held
from atoll.storage.targets.tgt.process import TargetProcess, find_process
from atoll.storage.targets.tgt.tgt_socket import TgtSocket
from atoll_lab.iscsi import IscsiLun

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20

HOLD_FOR_EVER = """
import sys, time
from pathlib import Path
from atoll.storage.drivers.embedded import btrfs, open_embedded
from atoll.storage.engine import Rules
from atoll.storage.limits import Allowances
from atoll.storage.targets.tgt import barrier

def hang(*_, **__):
    print("held", flush=True)
    time.sleep(3600)

btrfs.snapshot = hang

barrier.while_held.__kwdefaults__["limit_seconds"] = 3600.0
if "--unwatched" in sys.argv:
    from contextlib import nullcontext
    barrier._watched = lambda *_: nullcontext()
open_embedded(Path(sys.argv[1]), Rules(Allowances(reserve_bytes=1))).snapshot_group("g", "s")
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come; the generous limit only ends a test that failed."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def serve(engine: ManagedEngine) -> IscsiLun:
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    portal = engine.present("g", "a", [HOST]).portals[0]
    return IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST)


def group_id(engine: ManagedEngine) -> str:
    (group,) = engine._records.groups()
    return group.id


def daemon(engine: ManagedEngine) -> TargetProcess:
    found = find_process(TgtSocket(engine.runtime_directory / f"{group_id(engine)}.tgt"))
    assert found is not None
    return found


def hold_and_die(pool: Path, process: TargetProcess, *options: str) -> None:
    """Kill a process that snapshots, at the moment it holds the daemon still."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_FOR_EVER, str(pool), *options], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert process.stopped()
        holder.send_signal(signal.SIGKILL)


def test_a_holder_killed_while_holding_lets_go(pool: Path, engine: ManagedEngine) -> None:
    session = serve(engine)
    with daemon(engine) as process:
        hold_and_die(pool, process)
        until(lambda: not process.partly_stopped())
    session.write(0, b"x" * 4096)
    assert engine.snapshots("g") == []
    assert engine.snapshot_group("g", "s").name == "s"
    session.close()


def test_a_start_lets_go_when_the_watchdog_died_too(pool: Path, engine: ManagedEngine) -> None:
    session = serve(engine)
    with daemon(engine) as process:
        hold_and_die(pool, process, "--unwatched")
        assert process.stopped()
        open_embedded(pool)
        until(lambda: not process.partly_stopped())
    session.write(0, b"x" * 4096)
    session.close()


def test_a_start_leaves_the_barrier_of_the_living_alone(
    pool: Path, engine: ManagedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = serve(engine)
    take = btrfs.snapshot

    def restart_meanwhile(source: Path, path: Path, *, read_only: bool) -> None:
        open_embedded(pool)
        with daemon(engine) as process:
            assert process.stopped()
        take(source, path, read_only=read_only)

    monkeypatch.setattr(btrfs, "snapshot", restart_meanwhile)
    engine.snapshot_group("g", "s")
    session.close()


def test_a_hold_that_lasts_too_long_is_broken_and_told(engine: ManagedEngine) -> None:
    session = serve(engine)
    with daemon(engine) as process:

        def outlast() -> None:
            assert process.stopped()
            until(lambda: not process.partly_stopped())

        with pytest.raises(BarrierBrokenError):
            while_held(process, outlast, limit_seconds=0.3)
        assert not process.partly_stopped()
    session.close()


def test_a_broken_barrier_leaves_no_snapshot(
    engine: ManagedEngine, monkeypatch: pytest.MonkeyPatch, pool: Path
) -> None:
    session = serve(engine)
    take = btrfs.snapshot

    def too_late(source: Path, path: Path, *, read_only: bool) -> None:
        with daemon(engine) as process:
            os.kill(process.pid, signal.SIGCONT)
            until(lambda: not process.partly_stopped())
        take(source, path, read_only=read_only)

    monkeypatch.setattr(btrfs, "snapshot", too_late)
    with pytest.raises(BarrierBrokenError):
        engine.snapshot_group("g", "s")
    monkeypatch.undo()
    assert engine.snapshots("g") == []
    assert list((pool / "snapshots").iterdir()) == []
    session.close()


def test_without_its_watchdog_nothing_is_held(
    engine: ManagedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = serve(engine)
    monkeypatch.setattr(barrier.watchdog, "__file__", "/nonexistent/watchdog.py")
    with pytest.raises(BarrierBrokenError, match="watchdog"):
        engine.snapshot_group("g", "s")
    with daemon(engine) as process:
        assert not process.partly_stopped()
    assert engine.snapshots("g") == []
    session.close()
