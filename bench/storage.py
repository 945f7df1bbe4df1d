"""`make bench-storage`: what the embedded engine takes for snapshots, changes, clones and reads.

A pool in a sparse file on this machine's disk. Loads write through the LUNs' iSCSI target, as
hosts do; the changes of large LUNs are written to their images, where they cost the same.
"""

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from atoll.model.extents import total_bytes
from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine
from atoll.storage.targets.tgt import Durability
from atoll_lab.iscsi import IscsiLun
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from atoll_lab.pool import create_loop_pool, destroy, image, snapshot_image
from bench.report import Figure, figure, high_figure, publish, say

MIB, GIB = 1 << 20, 1 << 30
HOST = "iqn.1998-01.com.vmware:esx1"
POOL_BYTES = 64 * GIB
SAMPLES = int(os.environ.get("ATOLL_BENCH_SAMPLES", "40"))
LOAD_LUNS = 4
LOAD_BYTES_PER_SECOND = 20 * MIB
READ_BYTES = 1 * GIB
ATOMICITY_SNAPSHOTS = 100


def main() -> None:
    """Measure all and publish."""
    directory = Path(tempfile.mkdtemp(prefix="atoll-bench-", dir="/var/tmp"))
    try:
        root = create_loop_pool(directory, POOL_BYTES)
        create_pool(root, "bench")
        engine = open_embedded(root, durability="cache")
        try:
            figures = [
                *_snapshots(engine),
                *_changes(engine, root),
                *_clones(engine),
                *_reads(engine, root),
                *_atomicity(engine),
                *_durability(root),
            ]
        finally:
            engine.stop()
    finally:
        destroy(directory)
        directory.rmdir()
    publish("storage", figures)


def _snapshots(engine: ManagedEngine) -> list[Figure]:
    figures = []
    for count in (1, 8, 64):
        say(f"snapshots of {count} LUNs")
        group = f"snap{count}"
        portals = _group(engine, group, count, GIB)
        quiet = _take_snapshots(engine, group)
        with _load(portals[:LOAD_LUNS]) as written:
            loaded = _take_snapshots(engine, group)
        rate = written() / MIB
        name = f"snapshot_{count}_luns"
        figures += [
            figure(f"{name}_quiet_p50_seconds", quiet, "s"),
            high_figure(f"{name}_quiet_p99_seconds", quiet, "s"),
            figure(f"{name}_p50_seconds", loaded, "s", "without load", _median(quiet)),
            high_figure(f"{name}_p99_seconds", loaded, "s"),
            figure(f"{name}_load", [rate], "MiB/s"),
        ]
        _remove(engine, group)
    return figures


def _take_snapshots(engine: ManagedEngine, group: str) -> list[float]:
    seconds = []
    for number in range(SAMPLES):
        began = time.monotonic()
        engine.snapshot_group(group, f"s{number}")
        seconds.append(time.monotonic() - began)
        engine.delete_snapshot(group, f"s{number}")
        time.sleep(0.1)
    return seconds


def _changes(engine: ManagedEngine, root: Path) -> list[Figure]:
    """Against the size at a fixed change, and against the change at a fixed size."""
    cases = [
        ("changed_extents_8g_64m", 8 * GIB, 64 * MIB),
        ("changed_extents_64g_64m", 64 * GIB, 64 * MIB),
        ("changed_extents_512g_64m", 512 * GIB, 64 * MIB),
        ("changed_extents_100g_01pct", 100 * GIB, 100 * GIB // 1000),
        ("changed_extents_100g_1pct", 100 * GIB, GIB),
    ]
    figures = []
    for name, size, change in cases:
        say(f"{name}: what changed in a LUN of {size // GIB} GiB")
        group = name.replace("_", "-")
        engine.create_group(group)
        engine.create_lun(group, "a", size)
        path = image(root, group, "a")
        # Something lies there before, as on a LUN in use.
        _scatter(path, size, change, seed=1)
        engine.snapshot_group(group, "older")
        _scatter(path, size, change, seed=2)
        engine.snapshot_group(group, "newer")
        seconds, found = [], []
        for _ in range(5):
            began = time.monotonic()
            found = list(engine.changed_extents(group, "a", "older", "newer"))
            seconds.append(time.monotonic() - began)
        figures += [
            figure(f"{name}_seconds", seconds, "s"),
            figure(f"{name}_listed", [float(total_bytes(found))], "bytes", "written", change),
        ]
        _remove(engine, group)
    return figures


def _scatter(path: Path, size: int, total: int, seed: int) -> None:
    """Write `total` bytes in pieces of 4 to 64 KiB at places all over the image."""
    chosen = random.Random(seed)
    noise = chosen.randbytes(64 << 10)
    with path.open("r+b") as file:
        left = total
        while left > 0:
            length = min(left, 4096 * chosen.randrange(1, 17))
            os.pwrite(file.fileno(), noise[:length], chosen.randrange(size // 4096 - 16) * 4096)
            left -= length
        os.fsync(file.fileno())


def _clones(engine: ManagedEngine) -> list[Figure]:
    say("clones, presented")
    _group(engine, "origin", 8, GIB)
    engine.snapshot_group("origin", "s")
    clone, present = [], []
    for number in range(SAMPLES):
        name = f"copy{number}"
        began = time.monotonic()
        made = engine.clone("origin", "s", name)
        cloned = time.monotonic()
        for lun in made.luns:
            engine.present(name, lun.name, [HOST])
        clone.append(cloned - began)
        present.append(time.monotonic() - began)
        engine.delete_clone(name)
    _remove(engine, "origin")
    return [
        high_figure("clone_p99_seconds", clone, "s"),
        high_figure("clone_present_p99_seconds", present, "s"),
    ]


def _reads(engine: ManagedEngine, root: Path) -> list[Figure]:
    """A gibibyte from a snapshot: by the engine, over iSCSI from a clone, and as a plain file."""
    say("reads")
    _group(engine, "read", 1, 2 * GIB)
    noise = os.urandom(MIB)
    with image(root, "read", "l0").open("r+b") as file:
        for _ in range(READ_BYTES // MIB):
            file.write(noise)
        os.fsync(file.fileno())
    engine.snapshot_group("read", "s")
    engine.clone("read", "s", "copy")
    portal = engine.present("copy", "l0", [HOST]).portals[0]
    plain, direct, over_iscsi = [], [], []
    path = snapshot_image(root, "read", "s", "l0")
    for _ in range(7):
        with path.open("rb", buffering=0) as file:
            plain.append(_read_rate(partial(_pread, file.fileno())))
        reader = engine.open_snapshot("read", "l0", "s")
        direct.append(_read_rate(reader.read))
        reader.close()
        with IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST) as lun:
            over_iscsi.append(_read_rate(lun.read))
    engine.delete_clone("copy")
    _remove(engine, "read")
    ratios = [ours / peer for ours, peer in zip(direct, plain, strict=True)]
    return [
        figure("read_plain_file", plain, "MiB/s"),
        figure("read_direct", direct, "MiB/s", "plain file", _median(plain)),
        figure("read_iscsi", over_iscsi, "MiB/s", "plain file", _median(plain)),
        figure("direct_read_ratio", ratios, "ratio", "plain file", 1.0),
    ]


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    return os.pread(descriptor, length, offset)


def _read_rate(read: Callable[[int, int], bytes]) -> float:
    """MiB/s of `read(offset, length)` from one end to the other."""
    began = time.monotonic()
    for at in range(0, READ_BYTES, MIB):
        read(at, MIB)
    return READ_BYTES / MIB / (time.monotonic() - began)


def _atomicity(engine: ManagedEngine) -> list[Figure]:
    say(f"{ATOMICITY_SNAPSHOTS} snapshots under a writer whose order tells")
    portals = _group(engine, "order", LOAD_LUNS, 16 * MIB)
    violations = 0
    with ExitStack() as stack:
        sessions = [stack.enter_context(_session(portal)) for portal in portals]
        writer = OrderedWriter(sessions, flush=False)
        writer.start()
        try:
            for number in range(ATOMICITY_SNAPSHOTS):
                engine.snapshot_group("order", f"s{number}")
                readers = [
                    engine.open_snapshot("order", f"l{lun}", f"s{number}")
                    for lun in range(LOAD_LUNS)
                ]
                violations += not is_one_instant([newest(reader) for reader in readers])
                for reader in readers:
                    reader.close()
        finally:
            writer.end()
    _remove(engine, "order")
    return [
        figure("atomicity_violations", [float(violations)], "snapshots"),
        figure("atomicity_snapshots", [float(ATOMICITY_SNAPSHOTS)], "snapshots"),
    ]


def _durability(root: Path) -> list[Figure]:
    """4 KiB writes a second over iSCSI, one at a time, acknowledged from the disk and from memory."""
    say("what durability costs")
    rates: dict[Durability, list[float]] = {"cache": [], "disk": []}
    for durability, measured in rates.items():
        engine = open_embedded(root, durability=durability)
        portals = _group(engine, durability, 1, GIB)
        with _session(portals[0]) as lun:
            for repeat in range(5):
                count, began = 0, time.monotonic()
                while (passed := time.monotonic() - began) < 2:
                    block = (count * 7919 + repeat) % (GIB // 4096)
                    lun.write(block * 4096, b"\x5a" * 4096)
                    count += 1
                measured.append(count / passed)
        _remove(engine, durability)
    cache = _median(rates["cache"])
    return [
        figure("writes_acknowledged_from_cache", rates["cache"], "writes/s"),
        figure("writes_acknowledged_from_disk", rates["disk"], "writes/s", "from cache", cache),
    ]


_Portal = tuple[str, str]


def _group(engine: ManagedEngine, group: str, count: int, size: int) -> list[_Portal]:
    """A group of LUNs `l0`, `l1`, …, presented; (portal, target) of each."""
    engine.create_group(group)
    portals = []
    for number in range(count):
        engine.create_lun(group, f"l{number}", size)
        portal = engine.present(group, f"l{number}", [HOST]).portals[0]
        portals.append((f"{portal.address}:{portal.port}", portal.target))
    return portals


def _remove(engine: ManagedEngine, group: str) -> None:
    for lun in next(each for each in engine.groups() if each.name == group).luns:
        engine.withdraw(group, lun.name)
    for snapshot in engine.snapshots(group):
        engine.delete_snapshot(group, snapshot.name)
    engine.delete_group(group)


def _session(portal: _Portal) -> IscsiLun:
    return IscsiLun(portal[0], portal[1], 1, HOST)


@contextmanager
def _load(portals: Sequence[_Portal]) -> Iterator[Callable[[], float]]:
    """Random writes of 4 to 64 KiB to the LUNs; gives their rate in bytes a second so far."""
    ending = threading.Event()
    written = [0] * len(portals)
    failures: list[Exception] = []
    began = time.monotonic()

    def write(index: int) -> None:
        chosen = random.Random(index)
        noise = chosen.randbytes(64 << 10)
        share = LOAD_BYTES_PER_SECOND / len(portals)
        try:
            with _session(portals[index]) as lun:
                while not ending.is_set():
                    length = 4096 * chosen.randrange(1, 17)
                    lun.write(chosen.randrange(GIB // 4096 - 16) * 4096, noise[:length])
                    written[index] += length
                    ahead = written[index] / share - (time.monotonic() - began)
                    if ahead > 0:
                        time.sleep(ahead)
        except Exception as error:  # noqa: BLE001 - raised by whoever ends the load
            failures.append(error)

    threads = [
        threading.Thread(target=write, args=(index,), daemon=True) for index in range(len(portals))
    ]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(written) / (time.monotonic() - began)
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _median(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 2]


if __name__ == "__main__":
    main()
