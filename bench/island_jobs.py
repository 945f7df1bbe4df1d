"""What production loses while twenty backup jobs read: from the island's run, and the old way.

A lab of its own: db1 is a real guest whose disks lie in VMFS on LUNs over iSCSI, pgbench works in it
as fast as it goes. Windows take turns: nothing at all; twenty jobs that read a run from `atoll mount`,
`atoll export` and `vcbMounter`; the same jobs reading the disks below a VMware snapshot that is held as
long as they run and then merged; and the same jobs in two more ways that tell what the figures are made
of. Each window with jobs is compared with the quiet ones before and after it.

Guests (emulated), storage and backup proxies are three machines in a farm and one here. So proxies, that
is jobs, mount and export, have the last processor to themselves and write to memory; production and
storage have the others, in quiet windows too. That does not make them another machine: the disk, the
file system on it, what the kernel does for them, caches and memory are shared. How much that is, the
windows tell in which the jobs read a copy of the LUNs in memory, so that neither storage nor guest has
anything to do with them; and those in which they are limited to what a quiet window leaves over. The
lab's VMware snapshots are live external snapshots of QEMU with their deltas beside it on this machine's
own disk, neither in the VMFS volume nor on the LUN: what ESX pays for that is not in the figures.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from atoll.vsphere.client import VCenter
from atoll.vsphere.snapshots import VmwareSnapshots
from atoll.wiring import open_site
from atoll_lab.blueprint import LUNS, VMS
from atoll_lab.guests.control import GuestShell
from atoll_lab.guests.load import postgres_load
from atoll_lab.guests.qemu import DELTA_SUFFIX
from atoll_lab.places import places
from atoll_lab.pool import image, snapshot_image
from atoll_lab.running import Lab, open_lab, read_record
from atoll_lab.up import instance_uuid
from bench.elsewhere import Elsewhere, elsewhere, stay_here
from bench.frozen_base import EXPORT, link_production
from bench.jobs import ColdCaches, Jobs, Source, await_serving, read_by
from bench.production import Kind, Window, Worked, production_figures
from bench.report import Figure, publish, say

NAME = os.environ.get("ATOLL_BENCH_LAB", "bench")
ROUNDS = int(os.environ.get("ATOLL_BENCH_ROUNDS", "4"))
JOBS_SECONDS = float(os.environ.get("ATOLL_BENCH_JOBS_SECONDS", "45"))
QUIET_SECONDS = float(os.environ.get("ATOLL_BENCH_QUIET_SECONDS", "15"))
CONTROL_SECONDS = min(20.0, JOBS_SECONDS)
"""For the windows that only tell what the others are made of."""
PROXIES_SHARE = 0.3
"""Of a processor, for all proxies together where they are limited: about what a quiet window leaves over."""
SETTLE_SECONDS = 3.0
WARM_SECONDS = 15.0
LOAD_SECONDS = 6 * 3600
SNAPSHOT = "atoll-bench"
END_SECONDS = 60.0
SNAPSHOT_SECONDS, MERGE_SECONDS = 120.0, 600.0
MIB = 1 << 20
NAMES = tuple(vm.name for vm in VMS)
_CHECKPOINT = (
    "cd /tmp; setpriv --reuid postgres --regid postgres --init-groups psql -XAtqc CHECKPOINT bench"
)


ROUND = (Kind.QUIET, Kind.RUN, Kind.QUIET, Kind.HELD)
CONTROLS = (Kind.QUIET, Kind.LIMITED, Kind.MEMORY)
"""Once in the middle of the rounds."""


def main() -> None:
    """Measure and publish."""
    publish("island_jobs", jobs_figures())


def jobs_figures() -> list[Figure]:
    """`pgbench_ratio_20_jobs` and `pgbench_ratio_held_vmware_snapshot`, and what belongs to them.

    `pgbench_ratio_20_jobs` is db1's throughput while twenty jobs read from the run, over that of the
    quiet windows beside; `…_with_capture` is the same from the beginning of `atoll capture`, whose
    hold is in it. `…_from_memory` is with the same jobs on a copy in memory, `…_limited` with the jobs
    from the run at `PROXIES_SHARE` of a processor for all of them. `pgbench_ratio_held_vmware_snapshot`
    is from the taking of the VMware snapshots until they are merged. `pgbench_ratio_quiet` is each quiet
    window over the one before: what such ratios are without anything. `…_stalled_seconds` are those
    in which hardly anything was done, `…_read` what the jobs read in a second, holes too.
    """
    with _lab() as lab, elsewhere() as proxies:
        stay_here(_processes_of(lab))
        load = postgres_load(lab.shell("db1"))
        load.start(LOAD_SECONDS)
        try:
            time.sleep(WARM_SECONDS)
            measured = _Measuring(lab, proxies).measure()
            rates = load.rates()
        finally:
            load.stop()
    return production_figures(measured, rates)


class _Measuring:
    """The windows, one after the other, on a lab whose load runs."""

    def __init__(self, lab: Lab, proxies: Elsewhere) -> None:
        self._lab = lab
        self._proxies = proxies
        self._shell = lab.shell("db1")
        self._pool, self._groups = lab.places.pool, lab.record.lun_groups
        self._directory = self._memory = Path()
        self._vcenter: VCenter
        self._vmware: VmwareSnapshots

    def measure(self) -> list[Worked]:
        """`ROUNDS` times a round, with the controls between, and a quiet window in the end."""
        site = open_site(self._lab.places.settings)
        self._vcenter = site.vcenter()
        self._vmware = self._vcenter.snapshots("bench")
        ways: dict[Kind, Callable[[], Worked]] = {
            Kind.QUIET: self._quiet,
            Kind.RUN: self._from_the_run,
            Kind.LIMITED: partial(self._from_the_run, Kind.LIMITED, CONTROL_SECONDS, PROXIES_SHARE),
            Kind.HELD: self._from_below_a_snapshot,
            Kind.MEMORY: self._from_memory,
        }
        windows = []
        with (
            tempfile.TemporaryDirectory(prefix="atoll-bench-") as directory,
            tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/dev/shm") as memory,
        ):
            self._directory, self._memory = Path(directory), Path(memory)
            self._bypass_page_cache()
            link_production(NAME, self._directory / "luns")
            self._copy_to_memory()
            try:
                half = ROUNDS // 2
                order = (*ROUND * half, *CONTROLS, *ROUND * (ROUNDS - half), Kind.QUIET)
                for number, kind in enumerate(order, 1):
                    say(f"window {number} of {len(order)}: {kind}")
                    windows.append(ways[kind]())
            finally:
                site.close()
        return windows

    def _bypass_page_cache(self) -> None:
        """Let the pool's loop device read and write its file as a disk is, with no memory between."""
        (pool,) = self._lab.places.storage.glob("*.btrfs")
        found = subprocess.run(
            ["losetup", "--associated", str(pool), "--noheadings", "--output", "NAME"],
            check=True,
            capture_output=True,
            text=True,
        )
        subprocess.run(["losetup", "--direct-io=on", found.stdout.strip()], check=True)

    def _quiet(self) -> Worked:
        now = self._settled()
        with ColdCaches(self._storage()):
            began = now()
            time.sleep(QUIET_SECONDS)
            window = Window(began, now())
        return Worked(Kind.QUIET, window, window)

    def _copy_to_memory(self) -> None:
        """LUNs as a run has them."""
        with self._captured() as (_, images):
            for lun, path in images.items():
                subprocess.run(["cp", "--sparse=always", path, self._memory / lun], check=True)

    @contextmanager
    def _captured(self) -> Iterator[tuple[str, dict[str, Path]]]:
        """A run and its LUNs' images, deleted after the block."""
        captured = atoll("capture", *NAMES, "--json")
        _assert_held_well(captured)
        taken = {each["group"]: each["name"] for each in captured["snapshots"]}
        try:
            yield (
                captured["run"],
                {
                    lun: snapshot_image(self._pool, group, taken[group], lun)
                    for lun, group in self._groups.items()
                },
            )
        finally:
            for group, snapshot in taken.items():
                self._lab.engine.delete_snapshot(group, snapshot)

    def _from_the_run(
        self,
        kind: Kind = Kind.RUN,
        seconds: float = JOBS_SECONDS,
        processors: float | None = None,
    ) -> Worked:
        now = self._settled()
        top, socket = self._places()
        began = now()
        with (
            self._captured() as (run, images),
            _ended(_start(*_atoll("mount", run, str(top)))) as mounting,
            _ended(_start(*_atoll("export", run, "--socket", str(socket)))) as exporting,
        ):
            await_serving(mounting, top.is_mount)
            await_serving(exporting, socket.exists)
            source = Source(top, socket)
            served = (mounting, exporting)
            jobs, worked = self._work(source, served, images.values(), now, seconds, processors)
        return Worked(kind, Window(began, jobs.ended), jobs, *worked)

    def _from_memory(self) -> Worked:
        now = self._settled()
        jobs, worked = self._from_luns(self._memory, now, CONTROL_SECONDS)
        return Worked(Kind.MEMORY, jobs, jobs, *worked)

    def _from_luns(
        self, luns: Path, now: Callable[[], float], seconds: float
    ) -> tuple[Window, tuple[float, int, int]]:
        top, socket = self._places()
        serve = [sys.executable, "-m", "bench.frozen_base", "serve", NAME, str(luns)]
        with _ended(_start(*serve, str(top), str(socket))) as server:
            await_serving(server, socket.exists)
            source = Source(top, socket, EXPORT.format(lab=NAME, luns=luns))
            return self._work(source, (server,), (), now, seconds)

    def _from_below_a_snapshot(self) -> Worked:
        now = self._settled()
        uuids = [instance_uuid(NAME, vm) for vm in NAMES]
        began = now()
        with ThreadPoolExecutor(len(uuids)) as pool, ExitStack() as stack:
            # For what fails; removing what is not there is success.
            stack.callback(lambda: list(pool.map(self._merge, uuids)))
            assert all(pool.map(self._snapshot, uuids)), "a guest was not quiesced"
            jobs, worked = self._from_luns(self._directory / "luns", now, JOBS_SECONDS)
            deltas = float(sum(path.stat().st_blocks * 512 for path in self._deltas()))
            merging = now()
            list(pool.map(self._merge, uuids))
            ended = now()
        assert not self._snapshots_now(), "the VMware snapshots were not removed"
        return Worked(Kind.HELD, Window(began, ended), jobs, *worked, ended - merging, deltas)

    def _work(
        self,
        source: Source,
        servers: Sequence[subprocess.Popen[bytes]],
        images: Iterable[Path],
        now: Callable[[], float],
        seconds: float,
        processors: float | None = None,
    ) -> tuple[Window, tuple[float, int, int]]:
        """The jobs' window, MiB/s they read, rounds they ended, and snapshots seen meanwhile."""
        images = [*self._storage(), *images, *source.tree.glob("*/image/raw/*.img")]
        self._proxies.limit(processors)
        for server in servers:
            self._proxies.take(server.pid)
        began, served = now(), read_by(servers[-1].pid)
        with (
            ColdCaches(images),
            Jobs(source, self._lab.places.settings, self._proxies) as jobs,
        ):
            seen = 0
            for _ in range(3):
                time.sleep(seconds / 3)
                seen = max(seen, self._snapshots_now())
            jobs.stop()
            window = Window(began, now())
        read = (jobs.read_bytes + read_by(servers[-1].pid) - served) / MIB / window.seconds
        say(f"{len(jobs)} jobs ended {sum(jobs.rounds.values())} rounds, {read:.0f} MiB/s")
        return window, (read, sum(jobs.rounds.values()), seen)

    def _settled(self) -> Callable[[], float]:
        """Let what the window before has begun come to its end; gives db1's clock."""
        self._shell.check(_CHECKPOINT, 300)
        time.sleep(SETTLE_SECONDS)
        ahead = _clock_ahead(self._shell)
        return lambda: time.time() + ahead

    def _places(self) -> tuple[Path, Path]:
        top, socket = self._directory / "tree", self._directory / "nbd.sock"
        top.mkdir(exist_ok=True)
        socket.unlink(missing_ok=True)
        return top, socket

    def _storage(self) -> list[Path]:
        """The pool's disk, and the LUNs on it."""
        luns = [image(self._pool, self._groups[lun.name], lun.name) for lun in LUNS]
        return [*self._lab.places.storage.glob("*.btrfs"), *luns]

    def _snapshot(self, uuid: str) -> bool:
        made = self._vmware.quiesced_snapshot(uuid, SNAPSHOT, "bench", SNAPSHOT_SECONDS)
        return made.quiesced

    def _merge(self, uuid: str) -> None:
        self._vmware.remove(uuid, SNAPSHOT, MERGE_SECONDS)

    def _deltas(self) -> list[Path]:
        return list(self._lab.places.guests.glob(f"*/*{DELTA_SUFFIX}"))

    def _snapshots_now(self) -> int:
        """VMs that have a VMware snapshot, and delta files, now."""
        vms = self._vcenter.inventory().vms
        return sum(vm.has_snapshot for vm in vms) + len(self._deltas())


def atoll(*arguments: str) -> Any:
    """Run a command as the director does; what it printed as JSON, if it did."""
    done = subprocess.run(
        [*_atoll(*arguments)], check=True, stdout=subprocess.PIPE, env=_environment()
    )
    return json.loads(done.stdout) if "--json" in arguments else None


def _start(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=_environment()
    )


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Told to end when the block does; RuntimeError when it says that something was wrong."""
    try:
        yield process
    finally:
        process.terminate()
        if process.wait(END_SECONDS):
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")


def _atoll(*arguments: str) -> tuple[str, ...]:
    return (str(Path(sys.executable).with_name("atoll")), *arguments)


def _environment() -> dict[str, str]:
    return {**os.environ, "ATOLL_CONFIG": str(places(NAME).settings)}


def _processes_of(lab: Lab) -> list[int]:
    """Guests, storage and vCenter: what names a file of the lab, and the iSCSI daemons."""
    found = []
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = words.read_bytes()
            if bytes(lab.places.root) in line or line.startswith(b"tgtd\0"):
                found.append(int(words.parent.name))
    return found


def _assert_held_well(captured: Any) -> None:
    for vm, proof in captured["proofs"].items():
        assert proof["consistency"] == "app", f"{vm}: {proof}"


def _clock_ahead(shell: GuestShell) -> float:
    """How far the guest's clock is ahead of this machine's: the quickest answer of three tells."""
    found = []
    for _ in range(3):
        began = time.time()
        guest = float(shell.check("date +%s.%N"))
        ended = time.time()
        found.append((ended - began, guest - (began + ended) / 2))
    return min(found)[1]


@contextmanager
def _lab() -> Iterator[Lab]:
    """The lab, taken down at the end unless it was there before."""
    was_there = read_record(places(NAME)) is not None
    with ExitStack() as stack:
        if not was_there:
            stack.callback(subprocess.run, _atoll("lab", "down", NAME), check=True)
        subprocess.run(_atoll("lab", "up", NAME), check=True)
        yield stack.enter_context(open_lab(NAME))


if __name__ == "__main__":
    assert os.geteuid() == 0, "needs root"
    main()
