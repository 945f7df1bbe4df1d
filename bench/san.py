"""`python -m bench.san`: the SAN driver on a server that QEMU emulates on this machine.

Software emulation makes everything many times slower than a real server; the figures say which
things cost much beside which, and whether 64 LUNs fit into the time writes may be held.
"""

import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from atoll.model.extents import total_bytes
from atoll.settings import StorageSection
from atoll.storage.engine import ManagedEngine
from atoll.storage.initiator import IscsiLun
from atoll.wiring import create_system, open_system
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from atoll_lab.san.guest import san_guest
from bench.report import Figure, figure, high_figure, publish, say

MIB, GIB = 1 << 20, 1 << 30
HOST = "iqn.1998-01.com.vmware:esx1"
SAMPLES = int(os.environ.get("ATOLL_BENCH_SAMPLES", "20"))
COUNTS = (1, 8, 64)
LOAD_LUNS = 4
ATOMICITY_SNAPSHOTS = 50


def main() -> None:
    """Measure all and publish."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/var/tmp") as made:
        directory = Path(made)
        with san_guest(directory / "guest") as guest:
            keys = {**guest.settings, "state_directory": str(directory / "state")}
            engine = _engine(keys)
            figures = [
                *_snapshots(engine),
                *_calls(engine),
                *_changes(engine),
                *_writes(engine, "disk"),
            ]
            figures += _writes(_engine({**keys, "durability": "cache"}), "cache")
            figures += _atomicity(engine)
    publish("san", figures)


def _engine(keys: dict[str, object]) -> ManagedEngine:
    section = StorageSection.model_validate({"name": "bench", "reserve_bytes": MIB, **keys})
    create_system(section)
    return open_system(section)


def _snapshots(engine: ManagedEngine) -> list[Figure]:
    figures = []
    for count in COUNTS:
        say(f"snapshots of {count} presented LUNs")
        group = f"snap{count}"
        sessions = _group(engine, group, count)
        for name, load in (("quiet", False), ("loaded", True)):
            seconds, pauses = [], []
            with _load(sessions[:LOAD_LUNS] if load else []):
                for number in range(SAMPLES):
                    began = time.monotonic()
                    taken = engine.snapshot_group(group, f"s{number}")
                    seconds.append(time.monotonic() - began)
                    pauses.append(taken.pause_seconds)
                    engine.delete_snapshot(group, f"s{number}")
            figures += [
                figure(f"snapshot_{count}_luns_{name}_p50_seconds", seconds, "s"),
                figure(f"snapshot_{count}_luns_{name}_pause_p50_seconds", pauses, "s"),
                high_figure(f"snapshot_{count}_luns_{name}_pause_p99_seconds", pauses, "s"),
            ]
        _remove(engine, group, sessions)
    return figures


def _calls(engine: ManagedEngine) -> list[Figure]:
    say("creating, presenting, cloning")
    create, present, clone = [], [], []
    engine.create_group("calls")
    for number in range(8):
        began = time.monotonic()
        engine.create_lun("calls", f"l{number}", GIB)
        created = time.monotonic()
        engine.present("calls", f"l{number}", [HOST])
        create.append(created - began)
        present.append(time.monotonic() - created)
    engine.snapshot_group("calls", "s")
    for _ in range(SAMPLES):
        began = time.monotonic()
        engine.clone("calls", "s", "copy")
        clone.append(time.monotonic() - began)
        engine.delete_clone("copy")
    _remove(engine, "calls", [])
    return [
        figure("create_lun_seconds", create, "s"),
        figure("present_lun_seconds", present, "s"),
        figure("clone_8_luns_seconds", clone, "s"),
    ]


def _changes(engine: ManagedEngine) -> list[Figure]:
    say("what changed: 8 MiB in pieces of 4 KiB")
    [session] = _group(engine, "changed", 1)
    pieces = random.Random(1).sample(range(GIB // (64 << 10)), 2048)
    for number in pieces[:1024]:
        session.write(number << 16, b"old!" * 1024)
    engine.snapshot_group("changed", "older")
    for number in pieces[512:]:
        session.write(number << 16, b"new!" * 1024)
    engine.snapshot_group("changed", "newer")
    seconds, reads = [], []
    for _ in range(5):
        began = time.monotonic()
        found = list(engine.changed_extents("changed", "l0", "older", "newer"))
        seconds.append(time.monotonic() - began)
        with closing(engine.open_snapshot("changed", "l0", "newer")) as reader:
            began = time.monotonic()
            size = sum(len(data) for _, data in reader.read_many(found[:128]))
            reads.append(size / MIB / (time.monotonic() - began))
    _remove(engine, "changed", [session])
    return [
        figure("changed_extents_1536_chunks_seconds", seconds, "s"),
        figure("changed_extents_listed", [float(total_bytes(found))], "bytes"),
        figure("read_changed", reads, "MiB/s"),
    ]


def _writes(engine: ManagedEngine, durability: str) -> list[Figure]:
    say(f"writes of 4 KiB, durability {durability}")
    group = f"writes-{durability}"
    [session] = _group(engine, group, 1)
    rates = []
    for _ in range(5):
        began = time.monotonic()
        for number in range(100):
            session.write(number * 4096, b"\1" * 4096)
        rates.append(100 / (time.monotonic() - began))
    _remove(engine, group, [session])
    return [figure(f"writes_4k_{durability}", rates, "1/s")]


def _atomicity(engine: ManagedEngine) -> list[Figure]:
    say("snapshots of four LUNs under an ordered writer")
    sessions = _group(engine, "ordered", 4)
    writer = OrderedWriter(sessions, flush=False)
    writer.start()
    violations = 0
    for number in range(ATOMICITY_SNAPSHOTS):
        engine.snapshot_group("ordered", f"s{number}")
        found = []
        for lun in range(4):
            with closing(engine.open_snapshot("ordered", f"l{lun}", f"s{number}")) as reader:
                found.append(newest(reader))
        violations += not is_one_instant(found)
        engine.delete_snapshot("ordered", f"s{number}")
    writer.end()
    _remove(engine, "ordered", sessions)
    return [
        figure("atomicity_snapshots", [float(ATOMICITY_SNAPSHOTS)], ""),
        figure("atomicity_violations", [float(violations)], ""),
    ]


def _group(engine: ManagedEngine, group: str, count: int) -> list[IscsiLun]:
    engine.create_group(group)
    sessions = []
    for number in range(count):
        engine.create_lun(group, f"l{number}", GIB)
        portal = engine.present(group, f"l{number}", [HOST]).portals[0]
        address = f"{portal.address}:{portal.port}"
        sessions.append(IscsiLun(address, portal.target, portal.lun_number, HOST))
    return sessions


def _remove(engine: ManagedEngine, group: str, sessions: list[IscsiLun]) -> None:
    for session in sessions:
        session.close()
    engine.delete_group(group, force=True)


@contextmanager
def _load(sessions: list[IscsiLun]) -> Iterator[None]:
    """Random writes of 4 KiB as fast as each session takes them."""
    ending = threading.Event()

    def write(session: IscsiLun) -> None:
        chosen = random.Random(id(session))
        while not ending.is_set():
            session.write(chosen.randrange(64) << 20, b"load" * 1024)

    threads = [threading.Thread(target=write, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
