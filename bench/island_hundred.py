"""A hundred backup jobs at once on the island of a thousand VMs, as software that speaks VADP does them.

Each logs in to vCenter, finds its placeholder, takes a VMware snapshot of it, reads where the disk
lies, reads it from the island's LUN over iSCSI, and removes the snapshot. First they do that by
themselves; then they go on reading while a refresh to the next run is done, which must leave them
alone, say so, and take them along the next time. Every byte is compared, and at the end nothing is left.
"""

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyVmomi import vim

from atoll.model.storage import Portal
from atoll.service.island import clear_island, refresh_island
from atoll.service.site import Site
from atoll.storage.initiator import IscsiReader
from atoll.vsphere.collector import read_objects
from atoll.vsphere.folders import bound
from atoll.vsphere.session import Session
from atoll.vsphere.settings import VCenterSettings
from atoll.vsphere.tasks import await_task
from atoll.wiring import open_site
from atoll_lab.pool import image
from atoll_lab.vmfs import Volume
from bench.island_farm import (
    DISK_BYTES,
    ESX,
    GROUPS,
    ISLAND,
    LUNS_IN_GROUP,
    VMS,
    Farm,
    capture,
    farm_of_vms,
)
from bench.report import Figure, figure, publish, say

JOBS = 100
HOME, FOLDER = "island1-local", "Atoll"
TASK_SECONDS = 300.0
_SAMPLE_SECONDS = 0.5


def main() -> None:
    """Measure and publish."""
    publish("island_hundred", hundred_figures())


@dataclass(frozen=True, slots=True)
class Disk:
    """A VM's first disk: its LUN's group and name, and where on the LUN it lies."""

    vm: str
    group: str
    lun: str
    offset: int

    def content(self, run: str) -> bytes:
        """What it holds in a run."""
        return f"{self.vm} in run {run}. ".encode().ljust(64, b".") * (DISK_BYTES // 64)


@dataclass(frozen=True, slots=True)
class Job:
    """What a job's software knows: vCenter, the placeholder by its UUID, how it reaches LUNs by name."""

    vcenter: VCenterSettings
    placeholder: str
    portals: Callable[[str], Sequence[Portal]]
    disk: Disk

    def run(self, expected: str, reading: Callable[[], None], enough: threading.Event) -> int:
        """Do it; bytes read. Reads the disk over and over until it is `enough`, once at least.

        `reading` is called when the first time is done. AssertionError for content that is not
        the expected run's.
        """
        session = Session(self.vcenter)
        try:
            snapshot = session.call("take a snapshot", self._snapshot)
            try:
                naa = session.call("say where the disk lies", partial(_lun_of, snapshot))
                return self._read(naa, expected, reading, enough)
            finally:
                session.call("remove the snapshot", partial(_remove, snapshot))
        finally:
            session.close()

    def _snapshot(self, content: Any) -> str:
        found = content.searchIndex.FindByUuid(None, self.placeholder, True, True)
        assert found is not None, f"the placeholder of {self.disk.vm} is not found"
        task = found.CreateSnapshot_Task("backup", "a job's", False, False)
        return str(await_task(content, task, "take a snapshot", TASK_SECONDS)._moId)

    def _read(
        self, naa: str, expected: str, reading: Callable[[], None], enough: threading.Event
    ) -> int:
        wanted, read = self.disk.content(expected), 0
        reader = IscsiReader(self.portals(naa), ISLAND.iqn, naa=naa, connections=1)
        try:
            while True:
                got = reader.read(self.disk.offset, DISK_BYTES)
                assert got == wanted, (
                    f"{self.disk.vm} is not as run {expected} has it: {got[:64]!r}"
                )
                read += len(got)
                reading()
                if enough.wait(1.0 if read > DISK_BYTES else 0.0):
                    return read
        finally:
            reader.close()


def hundred_figures() -> list[Figure]:
    """`hundred_jobs_seconds`, `hundred_jobs_mib`, and a refresh that goes on meanwhile.

    `hundred_jobs_seconds` is from the first login until the last job has removed its snapshot, with
    nothing else going on. `hundred_jobs_refresh_seconds` is a refresh of all VMs to the next run while a
    hundred jobs hold their snapshots and read. `hundred_jobs_mib` is the most memory meanwhile, in both: of
    the storage's iSCSI daemons and of this process, in which the refresh and all the jobs' clients run.
    """
    with (
        tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/var/tmp") as name,
        ExitStack() as stack,
    ):
        directory = Path(name)
        farm = stack.enter_context(farm_of_vms(directory))
        site = open_site(_settings(farm, directory))
        stack.callback(site.close)
        say(f"writing {JOBS} disks")
        disks = _write_disks(farm, directory)
        _change(farm, disks, "first")
        capture(farm, "first")
        say(f"showing {VMS} VMs")
        done = refresh_island(site, "first")
        assert len(done.shown) == VMS, done.kept[:3]
        jobs = _jobs(farm, disks)
        memory = stack.enter_context(_Memory(farm.engine.runtime_directory))
        say(f"{JOBS} jobs at once")
        seconds = _all_at_once(jobs, "first")
        _change(farm, disks, "second")
        capture(farm, "second")
        say(f"{JOBS} jobs, and a refresh to the next run meanwhile")
        refreshing = _through_a_refresh(site, jobs)
        peak = memory.peak_bytes / (1 << 20)
        say("the next refresh, which takes them along")
        done = refresh_island(site, "second")
        assert len(done.shown) == VMS, done.kept[:3]
        assert done.retired == ["first"], done
        _all_at_once(jobs[:10], "second")
        say("clearing")
        assert not clear_island(site, None).kept
        _assert_nothing_left(farm, site, directory)
    return [
        figure("hundred_jobs_seconds", [seconds], "s"),
        figure("hundred_jobs_refresh_seconds", [refreshing], "s"),
        figure("hundred_jobs_mib", [peak], "MiB"),
    ]


def _all_at_once(jobs: Sequence[Job], expected: str) -> float:
    enough = threading.Event()
    enough.set()
    began = time.monotonic()
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="job") as pool:
        read = list(pool.map(lambda job: job.run(expected, lambda: None, enough), jobs))
    assert read == [DISK_BYTES] * len(jobs)
    return time.monotonic() - began


def _through_a_refresh(site: Site, jobs: Sequence[Job]) -> float:
    """The refresh's seconds. The jobs' placeholders stay as they are, and are named."""
    names = {job.disk.vm for job in jobs}
    enough = threading.Event()
    started = [threading.Event() for _ in jobs]
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="job") as pool:
        running = [
            pool.submit(job.run, "first", event.set, enough)
            for job, event in zip(jobs, started, strict=True)
        ]
        try:
            for job, event in zip(running, started, strict=True):
                while not event.wait(0.1):
                    assert not job.done(), job.exception()
            began = time.monotonic()
            done = refresh_island(site, "second")
            seconds = time.monotonic() - began
        finally:
            enough.set()
        for job in running:
            job.result()
    assert len(done.shown) == VMS - len(jobs)
    assert not names & {shown.name for shown in done.shown}
    assert len(done.kept) == len(jobs)
    assert all(any(f" {name} " in told for told in done.kept) for name in names), done.kept[:3]
    assert not done.retired, done.retired
    return seconds


def _settings(farm: Farm, directory: Path) -> Path:
    """The settings of a site that has the farm and its island, and no repository."""
    vcenter, path = farm.settings, directory / "atoll.toml"
    path.write_text(
        f"""
[vcenter]
host = "{vcenter.host}"
port = {vcenter.port}
user = "{vcenter.user}"
password_file = "vcenter/password"
ca_file = "{vcenter.ca_file}"

[[storage]]
name = "farm"
driver = "embedded"
root = "{farm.pool}"
durability = "cache"

[director]
state_directory = "state"

[island]
host = "{ISLAND.name}"
home = "{HOME}"
folder = "{FOLDER}"
"""
    )
    return path


def _write_disks(farm: Farm, directory: Path) -> list[Disk]:
    """Real VMDKs of the first VMs, whose first disks are spread over all LUNs."""
    source = directory / "disk"
    with source.open("wb") as file:
        file.truncate(DISK_BYTES)
    places: dict[tuple[str, str], list[str]] = {}
    for number, vm in enumerate(farm.names[:JOBS]):
        group = f"group{number % GROUPS}"
        lun = f"{group}-lun{number // GROUPS % LUNS_IN_GROUP}"
        places.setdefault((group, lun), []).append(vm)
    disks = []
    for (group, lun), vms in places.items():
        with Volume(image(farm.pool, group, lun)) as volume:
            for vm in vms:
                volume.mkdir(f"/{vm}")
                (extent,) = volume.create_disk(f"/{vm}/0.vmdk", DISK_BYTES, source)
                disks.append(Disk(vm, group, lun, extent.lun_offset))
    return disks


def _change(farm: Farm, disks: Sequence[Disk], run: str) -> None:
    """Let production have what the next run of that name is to hold."""
    for disk in disks:
        with image(farm.pool, disk.group, disk.lun).open("r+b") as file:
            file.seek(disk.offset)
            file.write(disk.content(run))


def _jobs(farm: Farm, disks: Sequence[Disk]) -> list[Job]:
    morefs = {known.name: known.moref for known in _placeholders(farm).all()}
    session = Session(farm.settings)
    try:
        rows = session.call(
            "read the placeholders' UUIDs",
            lambda content: read_objects(
                content,
                vim.VirtualMachine,
                [morefs[disk.vm] for disk in disks],
                ("config.instanceUuid",),
                session.page_objects,
            ),
        )
    finally:
        session.close()
    uuids = {row.moref: str(uuid.UUID(row.get("config.instanceUuid"))) for row in rows}
    portals = partial(_portals, farm)
    return [Job(farm.settings, uuids[morefs[disk.vm]], portals, disk) for disk in disks]


def _portals(farm: Farm, naa: str) -> Sequence[Portal]:
    """Where a LUN is reached, as the operating system of a proxy has it from its rescan."""
    names = {
        (group.name, lun.name)
        for group in farm.engine.groups()
        for lun in group.luns
        if lun.naa == naa
    }
    (shown,) = (each for each in farm.engine.presentations() if (each.group, each.lun) in names)
    assert shown.initiators == (ISLAND.iqn,), shown
    return shown.portals


def _lun_of(snapshot: str, content: Any) -> str:
    """The canonical name of the LUN that the first disk of a snapshot lies on, below all deltas."""
    (row,) = read_objects(content, vim.vm.Snapshot, [snapshot], ("config.hardware.device",), 1)
    disks = [
        device
        for device in row.get("config.hardware.device")
        if isinstance(device, vim.vm.device.VirtualDisk)
    ]
    backing: Any = disks[0].backing
    while backing.parent is not None:
        backing = backing.parent
    (store,) = read_objects(content, vim.Datastore, [backing.datastore._moId], ("info",), 1)
    (extent,) = store.get("info").vmfs.extent
    return str(extent.diskName)


def _remove(snapshot: str, content: Any) -> None:
    managed = bound(content, vim.vm.Snapshot, snapshot)
    task = managed.RemoveSnapshot_Task(False, True)
    await_task(content, task, "remove the snapshot", TASK_SECONDS)


def _placeholders(farm: Farm) -> Any:
    return farm.vcenter.placeholders(ISLAND.name, HOME, FOLDER)


def _assert_nothing_left(farm: Farm, site: Site, directory: Path) -> None:
    """No clone, presentation, pin, snapshot or file; the placeholders stay, without disks."""
    groups = [group.name for group in farm.engine.groups()]
    assert len(groups) == GROUPS, groups
    assert {each.initiators for each in farm.engine.presentations()} == {(ESX.iqn,)}
    known = _placeholders(farm).all()
    assert len(known) == VMS
    assert not [each for each in known if each.in_use or each.disks or each.run]
    (island,) = (host for host in farm.control.hosts() if host.name == ISLAND.name)
    assert not island.luns and not island.portals, island
    assert island.datastores == (HOME,), island
    for group in groups:
        for snapshot in farm.engine.snapshots(group):
            with site.pins().deleting(group, snapshot.name) as unread:
                assert unread, f"{snapshot.name} of {group} is still pinned"
                farm.engine.delete_snapshot(group, snapshot.name)
    for place in (directory / "state" / "readers", farm.pool / "snapshots"):
        assert not list(place.iterdir()), f"{place} is not empty"


class _Memory:
    """Watches how much memory this process and the storage's iSCSI daemons have."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = os.fsencode(runtime)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")
        self.peak_bytes = 0

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_SAMPLE_SECONDS):
            daemons = sum(map(_resident, self._daemons()))
            self.peak_bytes = max(self.peak_bytes, daemons + _resident(Path("/proc/self")))

    def _daemons(self) -> Iterator[Path]:
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = self._runtime in (entry / "environ").read_bytes()
                if ours and (entry / "comm").read_text().strip() == "tgtd":
                    yield entry


def _resident(process: Path) -> int:
    with suppress(OSError):
        pages = int((process / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


if __name__ == "__main__":
    assert os.geteuid() == 0, "needs root"
    main()
