"""`python -m bench.cinder_rbd`: Cinder's RBD driver, through the sidecar, on a cluster of one disk.

The monitor commits at once (`mini_cluster`'s settings) unless a figure's name says `default_monitor`.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from atoll.settings import StorageSection
from atoll.storage.engine import ManagedEngine
from atoll.storage.initiator import IscsiLun
from atoll.wiring import create_system, open_system
from atoll_lab.ceph import MiniCluster, mini_cluster
from bench.report import Figure, figure, high_figure, publish, say

MIB, GIB = 1 << 20, 1 << 30
HOST = "iqn.1998-01.com.vmware:esx1"
SAMPLES = int(os.environ.get("ATOLL_BENCH_SAMPLES", "20"))
READ_BYTES = 256 * MIB


def main() -> None:
    """Measure all and publish."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/var/tmp") as made:
        directory = Path(made)
        with mini_cluster(directory / "prompt") as cluster:
            system = _system(directory, cluster)
            engine = open_system(system)
            try:
                figures = [
                    *_start(system),
                    *_snapshots(engine, (1, 4, 16)),
                    *_clones(engine),
                    *_read(engine),
                ]
            finally:
                engine.stop()
        with mini_cluster(directory / "default", settings={}) as cluster:
            engine = open_system(_system(directory, cluster))
            try:
                figures += _snapshots(engine, (4,), "_default_monitor")
            finally:
                engine.stop()
    publish("cinder_rbd", figures)


def _system(directory: Path, cluster: MiniCluster) -> StorageSection:
    options: Mapping[str, object] = {
        "rbd_ceph_conf": str(cluster.conf),
        "rbd_pool": cluster.pool,
        "rbd_user": cluster.user,
        "rbd_exclusive_cinder_pool": True,
    }
    system = StorageSection.model_validate(
        {
            "name": "bench",
            "driver": "cinder",
            "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
            "options": options,
            "state_directory": str(directory / f"state-{cluster.directory.name}"),
            "reserve_bytes": MIB,
        }
    )
    create_system(system)
    return system


def _start(system: StorageSection) -> list[Figure]:
    say("the driver's start")
    seconds = []
    for _ in range(5):
        engine = open_system(system)
        began = time.monotonic()
        engine.capacity()
        seconds.append(time.monotonic() - began)
    return [figure("driver_start_seconds", seconds, "s")]


def _snapshots(engine: ManagedEngine, counts: tuple[int, ...], suffix: str = "") -> list[Figure]:
    figures = []
    for count in counts:
        say(f"snapshots of {count} LUNs{suffix.replace('_', ' ')}")
        _group(engine, "g", count)
        whole, pause = [], []
        for number in range(SAMPLES):
            began = time.monotonic()
            taken = engine.snapshot_group("g", f"s{number}")
            whole.append(time.monotonic() - began)
            pause.append(taken.pause_seconds)
            engine.delete_snapshot("g", f"s{number}")
        figures += [
            figure(f"snapshot_{count}_luns{suffix}_seconds", whole, "s"),
            figure(f"pause_{count}_luns{suffix}_seconds", pause, "s"),
            high_figure(f"pause_{count}_luns{suffix}_highest_seconds", pause, "s"),
        ]
        engine.delete_group("g", force=True)
    return figures


def _clones(engine: ManagedEngine) -> list[Figure]:
    say("clones of 4 LUNs")
    _group(engine, "g", 4)
    engine.snapshot_group("g", "s")
    seconds = []
    for _ in range(SAMPLES):
        began = time.monotonic()
        engine.clone("g", "s", "c")
        seconds.append(time.monotonic() - began)
        engine.delete_clone("c")
    engine.delete_group("g", force=True)
    return [figure("clone_4_luns_seconds", seconds, "s")]


def _read(engine: ManagedEngine) -> list[Figure]:
    say("reading a snapshot")
    engine.create_group("g")
    engine.create_lun("g", "l0", GIB)
    portal = engine.present("g", "l0", [HOST]).portals[0]
    with IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST) as lun:
        noise = os.urandom(4 * MIB)
        for at in range(0, READ_BYTES, len(noise)):
            lun.write(at, noise)
    engine.snapshot_group("g", "s")
    rates = []
    for _ in range(5):
        with closing(engine.open_snapshot("g", "l0", "s")) as reader:
            began = time.monotonic()
            for at in range(0, READ_BYTES, 4 * MIB):
                reader.read(at, 4 * MIB)
            rates.append(READ_BYTES / MIB / (time.monotonic() - began))
    engine.delete_group("g", force=True)
    return [figure("read_direct", rates, "MiB/s")]


def _group(engine: ManagedEngine, group: str, count: int) -> None:
    engine.create_group(group)
    for number in range(count):
        engine.create_lun(group, f"l{number}", GIB)
        engine.present(group, f"l{number}", [HOST])


if __name__ == "__main__":
    main()
