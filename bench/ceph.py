"""`python -m bench.ceph`: the Ceph driver on a cluster of one disk, all on this machine.

The monitor commits at once (`mini_cluster`'s settings) unless a figure's name says
`default_monitor`. Loads write through the LUNs' iSCSI target, as hosts do.
"""

import json
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from atoll.model.extents import total_bytes
from atoll.settings import StorageSection
from atoll.storage.engine import ManagedEngine
from atoll.storage.initiator import IscsiLun
from atoll.wiring import create_system, open_system
from atoll_lab.ceph import MiniCluster, mini_cluster
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from bench.report import Figure, figure, high_figure, publish, say

MIB, GIB = 1 << 20, 1 << 30
HOST = "iqn.1998-01.com.vmware:esx1"
SAMPLES = int(os.environ.get("ATOLL_BENCH_SAMPLES", "20"))
COUNTS = (1, 8, 64)
LOAD_LUNS = 4
LOAD_BYTES_PER_SECOND = 5 * MIB
READ_BYTES = 512 * MIB
ATOMICITY_SNAPSHOTS = 100


def main() -> None:
    """Measure all and publish."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/var/tmp") as made:
        directory = Path(made)
        prompt, default = directory / "prompt", directory / "default"
        with (
            mini_cluster(prompt, osd_bytes=16 * GIB) as cluster,
            _engine(directory, cluster) as engine,
        ):
            figures = [
                *_snapshots(engine, cluster),
                *_changes(engine),
                *_clones(engine),
                *_reads(engine),
                *_writes(engine),
                *_atomicity(engine),
            ]
        with mini_cluster(default, settings={}) as cluster, _engine(directory, cluster) as engine:
            figures += _snapshots(engine, cluster, "_default_monitor")
    publish("ceph", figures)


@contextmanager
def _engine(directory: Path, cluster: MiniCluster) -> Iterator[ManagedEngine]:
    system = StorageSection.model_validate(
        {
            "name": "bench",
            "driver": "ceph",
            "conf": str(cluster.conf),
            "pool": cluster.pool,
            "user": cluster.user,
            "keyring": str(cluster.keyring),
            "state_directory": str(directory / f"state-{cluster.directory.name}"),
            "reserve_bytes": MIB,
        }
    )
    create_system(system)
    engine = open_system(system)
    try:
        yield engine
    finally:
        engine.stop()


def _snapshots(engine: ManagedEngine, cluster: MiniCluster, suffix: str = "") -> list[Figure]:
    figures = []
    for count in COUNTS:
        say(f"snapshots of {count} LUNs{suffix.replace('_', ' ')}")
        sessions = _group(engine, "g", count)
        quiet, quiet_pause = _take_snapshots(engine)
        with _load(sessions[:LOAD_LUNS]) as written:
            loaded, pause = _take_snapshots(engine)
            rate = written() / MIB
        native = _librbd_group_snapshots(cluster)
        name = f"{count}_luns{suffix}"
        figures += [
            figure(f"snapshot_{name}_quiet_seconds", quiet, "s"),
            figure(f"pause_{name}_quiet_seconds", quiet_pause, "s"),
            figure(f"snapshot_{name}_seconds", loaded, "s", "without load", _median(quiet)),
            high_figure(f"snapshot_{name}_highest_seconds", loaded, "s"),
            figure(f"pause_{name}_seconds", pause, "s", "without load", _median(quiet_pause)),
            high_figure(f"pause_{name}_highest_seconds", pause, "s"),
            figure(f"load_{name}", [rate], "MiB/s"),
            figure(f"librbd_group_snapshot_{name}_quiet_seconds", native, "s"),
        ]
        _remove(engine, "g", sessions)
    return figures


def _take_snapshots(engine: ManagedEngine) -> tuple[list[float], list[float]]:
    whole, pause = [], []
    for number in range(SAMPLES):
        began = time.monotonic()
        taken = engine.snapshot_group("g", f"s{number}")
        whole.append(time.monotonic() - began)
        pause.append(taken.pause_seconds)
        engine.delete_snapshot("g", f"s{number}")
        time.sleep(0.1)
    return whole, pause


_GROUP_SNAPSHOTS = """
import json, rados, rbd, sys, time
conf, pool, samples = sys.argv[1:]
with rados.Rados(conffile=conf, rados_id="admin") as cluster:
    with cluster.open_ioctx(pool) as ioctx:
        rbd.RBD().group_create(ioctx, "bench")
        group = rbd.Group(ioctx, "bench")
        for name in rbd.RBD().list(ioctx):
            group.add_image(ioctx, name)
        seconds = []
        for number in range(int(samples)):
            began = time.monotonic()
            group.create_snap("s")
            seconds.append(time.monotonic() - began)
            group.remove_snap("s")
            time.sleep(0.1)
        rbd.RBD().group_remove(ioctx, "bench")
print(json.dumps(seconds))
"""


def _librbd_group_snapshots(cluster: MiniCluster) -> list[float]:
    """What librbd's own snapshots of groups take for the same images, served by the same daemon."""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", _GROUP_SNAPSHOTS, cluster.conf, cluster.pool, str(SAMPLES)],
        capture_output=True,
        check=True,
    )
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def _changes(engine: ManagedEngine) -> list[Figure]:
    cases = [
        ("changed_extents_2g_full_20m", 2 * GIB, 2 * GIB, 20 * MIB),
        ("changed_extents_64g_thin_20m", 64 * GIB, 20 * MIB, 20 * MIB),
        ("changed_extents_256g_thin_20m", 256 * GIB, 20 * MIB, 20 * MIB),
    ]
    figures = []
    for name, size, filled, change in cases:
        say(f"{name}: what changed in a LUN of {size // GIB} GiB")
        (session,) = _group(engine, "g", 1, size)
        if filled == size:
            noise = os.urandom(4 * MIB)
            for at in range(0, size, len(noise)):
                session.write(at, noise)
        else:
            _scatter(session, size, filled, seed=1)
        engine.snapshot_group("g", "older")
        written = _scatter(session, size, change, seed=2)
        engine.snapshot_group("g", "newer")
        seconds, found = [], []
        for _ in range(5):
            began = time.monotonic()
            found = list(engine.changed_extents("g", "l0", "older", "newer"))
            seconds.append(time.monotonic() - began)
        figures += [
            figure(f"{name}_seconds", seconds, "s"),
            figure(f"{name}_listed", [float(total_bytes(found))], "bytes", "written", written),
        ]
        _remove(engine, "g", [session])
    return figures


def _scatter(session: IscsiLun, size: int, total: int, seed: int) -> int:
    """Write at least `total` bytes in pieces of 4 to 64 KiB all over a LUN; how many it were."""
    chosen = random.Random(seed)
    noise = chosen.randbytes(64 << 10)
    written = 0
    while written < total:
        length = 4096 * chosen.randrange(1, 17)
        session.write(chosen.randrange(size // 4096 - 16) * 4096, noise[:length])
        written += length
    return written


def _clones(engine: ManagedEngine) -> list[Figure]:
    say("clones, presented")
    sessions = _group(engine, "g", 8)
    for session in sessions:
        session.write(0, os.urandom(16 * MIB))
    engine.snapshot_group("g", "s")
    clone, present = [], []
    for number in range(SAMPLES):
        name = f"copy{number}"
        began = time.monotonic()
        made = engine.clone("g", "s", name)
        clone.append(time.monotonic() - began)
        for lun in made.luns:
            engine.present(name, lun.name, [HOST])
        present.append(time.monotonic() - began)
        engine.delete_clone(name)
    _remove(engine, "g", sessions)
    return [
        figure("clone_8_luns_seconds", clone, "s"),
        high_figure("clone_8_luns_highest_seconds", clone, "s"),
        figure("clone_and_present_8_luns_seconds", present, "s"),
    ]


def _reads(engine: ManagedEngine) -> list[Figure]:
    say("reading a snapshot")
    (session,) = _group(engine, "g", 1)
    noise = os.urandom(4 * MIB)
    for at in range(0, READ_BYTES, len(noise)):
        session.write(at, noise)
    engine.snapshot_group("g", "s")
    direct, over_iscsi = [], []
    for _ in range(5):
        with closing(engine.open_snapshot("g", "l0", "s")) as reader:
            direct.append(_rate(reader.read))
        over_iscsi.append(_rate(session.read))
    _remove(engine, "g", [session])
    return [
        figure("read_direct", direct, "MiB/s"),
        figure("read_iscsi", over_iscsi, "MiB/s"),
    ]


def _rate(read: Callable[[int, int], bytes]) -> float:
    """MiB/s of `read(offset, length)` from one end to the other."""
    began = time.monotonic()
    for at in range(0, READ_BYTES, 4 * MIB):
        read(at, 4 * MIB)
    return READ_BYTES / MIB / (time.monotonic() - began)


def _writes(engine: ManagedEngine) -> list[Figure]:
    say("writes one at a time")
    (session,) = _group(engine, "g", 1)
    rates = []
    for _ in range(5):
        count, began = 0, time.monotonic()
        while (passed := time.monotonic() - began) < 2:
            session.write(count * 7919 % (GIB // 4096) * 4096, b"\x5a" * 4096)
            count += 1
        rates.append(count / passed)
    _remove(engine, "g", [session])
    return [figure("writes_4k", rates, "writes/s")]


def _atomicity(engine: ManagedEngine) -> list[Figure]:
    say(f"{ATOMICITY_SNAPSHOTS} snapshots under a writer whose order tells")
    sessions = _group(engine, "g", LOAD_LUNS, 16 * MIB)
    violations = 0
    writer = OrderedWriter(sessions, flush=False)
    writer.start()
    try:
        for number in range(ATOMICITY_SNAPSHOTS):
            engine.snapshot_group("g", f"s{number}")
            found = []
            for lun in range(LOAD_LUNS):
                with closing(engine.open_snapshot("g", f"l{lun}", f"s{number}")) as reader:
                    found.append(newest(reader))
            violations += not is_one_instant(found)
            engine.delete_snapshot("g", f"s{number}")
    finally:
        writer.end()
    _remove(engine, "g", sessions)
    return [
        figure("atomicity_violations", [float(violations)], "snapshots"),
        figure("atomicity_snapshots", [float(ATOMICITY_SNAPSHOTS)], "snapshots"),
    ]


def _group(engine: ManagedEngine, group: str, count: int, size: int = GIB) -> list[IscsiLun]:
    """A group of LUNs `l0`, `l1`, …, presented; a session on each."""
    engine.create_group(group)
    sessions = []
    for number in range(count):
        engine.create_lun(group, f"l{number}", size)
        portal = engine.present(group, f"l{number}", [HOST]).portals[0]
        sessions.append(IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST))
    return sessions


def _remove(engine: ManagedEngine, group: str, sessions: list[IscsiLun]) -> None:
    for session in sessions:
        session.close()
    engine.delete_group(group, force=True)


@contextmanager
def _load(sessions: list[IscsiLun]) -> Iterator[Callable[[], float]]:
    """Random writes of 4 to 64 KiB to the LUNs; gives their rate in bytes a second so far."""
    ending = threading.Event()
    written = [0] * len(sessions)
    failures: list[Exception] = []
    began = time.monotonic()

    def write(index: int) -> None:
        chosen = random.Random(index)
        noise = chosen.randbytes(64 << 10)
        share = LOAD_BYTES_PER_SECOND / len(sessions)
        try:
            while not ending.is_set():
                length = 4096 * chosen.randrange(1, 17)
                sessions[index].write(chosen.randrange(GIB // 4096 - 16) * 4096, noise[:length])
                written[index] += length
                ahead = written[index] / share - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
        except Exception as error:  # noqa: BLE001 - raised by whoever ends the load
            failures.append(error)

    threads = [
        threading.Thread(target=partial(write, index), daemon=True)
        for index in range(len(sessions))
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


def _median(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]


if __name__ == "__main__":
    main()
