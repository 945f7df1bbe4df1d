"""The island over real iSCSI: a run's snapshots shown by placeholders, and nothing left of them.

The volumes are resignatured on the LUNs themselves; what placeholders show is read back from there.
"""

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim

from atoll.blocks.readers import MappedReader
from atoll.blocks.vmfs import open_volumes
from atoll.director.certificate import certificate
from atoll.director.plan import make_plan
from atoll.island.placing import clear, refresh
from atoll.island.presentation import Island, island_host
from atoll.island.runs import CapturedRun, find_run
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.errors import ConfigurationError, StorageConflictError
from atoll.storage.initiator import IscsiReader
from atoll.vsphere.client import VCenter
from atoll_lab.blueprint import HOSTS
from atoll_lab.pool import image
from atoll_lab.vcenter.control import NewDisk
from atoll_lab.vmfs import Volume

pytestmark = pytest.mark.needs_root

ESX1, _, ISLAND = HOSTS
HOME = "island1-local"
MIB = 1 << 20
UUIDS = {
    "db1": "50000000-0000-4000-8000-0000000000d1",
    "app1": "50000000-0000-4000-8000-0000000000a1",
}
DISKS = {"db1": ("lun1", "lun2"), "app1": ("lun2",)}


def content_of(vm: str, lun: str) -> bytes:
    """What a VM's disk on a LUN holds."""
    return f"{vm} on {lun}".encode().ljust(MIB, b"-")


class Farm:
    """Two VMs with disks on the VMFS volumes of group `prod`, and the island to show them on."""

    def __init__(self, engine, pool: Path, simulator, vcenter: VCenter, work: Path) -> None:
        self.engine, self.simulator, self.vcenter = engine, simulator, vcenter
        naas = {lun.name: lun.naa for lun in engine.groups()[0].luns}
        for name in naas:
            with Volume(image(pool, "prod", name)) as volume:
                for vm in (vm for vm, stores in DISKS.items() if name in stores):
                    source = work / f"{vm}-{name}"
                    source.write_bytes(content_of(vm, name))
                    volume.mkdir(f"/{vm}")
                    volume.create_disk(f"/{vm}/{vm}.vmdk", MIB, source)
        shown = [engine.present("prod", name, [ESX1.iqn]) for name in naas]
        for host in (ESX1, ISLAND):
            for portal in {p for each in shown for p in each.portals}:
                simulator.control.add_portal(host.name, f"{portal.address}:{portal.port}")
            vcenter.rescan(host.name)
        for vm, stores in DISKS.items():
            self.add_vm(vm, stores)

    def add_vm(self, vm: str, stores: tuple[str, ...]) -> None:
        disks = [
            NewDisk(2000 + number, f"Hard disk {number + 1}", f"{vm}/{vm}.vmdk", MIB, store)
            for number, store in enumerate(stores)
        ]
        self.simulator.control.add_vm(
            vm, stores[0], f"{vm}/{vm}.vmx", disks, ESX1.name, "Debian", UUIDS[vm]
        )

    def run(self, name: str, *vms: str) -> CapturedRun:
        """A snapshot with its certificate, as a run leaves it."""
        inventory = self.vcenter.inventory()
        plan = make_plan(name, vms or tuple(DISKS), inventory, self.engine.groups(), ())
        taken = self.engine.snapshot_group("prod", f"atoll-1-{name}")
        proof = ConsistencyProof(
            "", Consistency.CRASH, (), None, "prod", taken.name, 0.0, 0.0, ESX1.name, ESX1.name
        )
        proofs = {vm.vm.instance_uuid: proof for vm in plan.vms}
        self.engine.annotate_snapshot("prod", taken.name, certificate(plan, proofs))
        return find_run(self.engine, name)

    @property
    def island(self) -> Island:
        hosts = self.vcenter.inventory().hosts
        volumes = self.vcenter.island_volumes(ISLAND.name)
        return Island(self.engine, volumes, island_host(hosts, ISLAND.name), "s1")

    @property
    def placeholders(self):
        return self.vcenter.placeholders(ISLAND.name, HOME, "Atoll")

    def refresh(self, run: CapturedRun):
        alive = self.placeholders.hardware(list(UUIDS.values()))
        return refresh(self.island, self.placeholders, run, alive)

    def shown(self) -> dict[str, tuple[str, dict[int, bytes]]]:
        """What a reader of the placeholders' files finds: run and disks' content, by VM name.

        Of those that nobody else reads.
        """
        found = {}
        for placeholder in self.placeholders.all():
            if placeholder.in_use:
                continue
            disks = {key: self._read(path) for key, path in placeholder.disks.items()}
            found[placeholder.name] = (placeholder.run, disks)
        return found

    def _read(self, path: str) -> bytes:
        """A VMDK's content, from the LUN that the island has mounted, over iSCSI."""
        store, _, inside = path.partition("] ")
        (naa,) = self.vcenter.inventory().datastore(store.removeprefix("[")).extents
        for shown in self.engine.presentations():
            lun = next(
                lun
                for group in self.engine.groups()
                for lun in group.luns
                if (group.name, lun.name) == (shown.group, shown.lun)
            )
            if lun.naa == naa:
                assert shown.initiators == (ISLAND.iqn,)
                reader = IscsiReader(shown.portals, ISLAND.iqn)
                try:
                    (volume,) = open_volumes({"lun": reader})
                    disk = MappedReader(volume.disk_map("/" + inside), {"lun": reader})
                    return disk.read(0, disk.size_bytes)
                finally:
                    reader.close()
        raise AssertionError(f"{path} is on no LUN that is presented")

    def portals(self) -> tuple[str, ...]:
        """Where the island looks for LUNs."""
        return next(
            host.portals for host in self.simulator.control.hosts() if host.name == ISLAND.name
        )

    def trace(self) -> tuple[set[str], set[str], set[str]]:
        """Clones on the storage, the island's LUNs, the datastores of vCenter beyond the usual."""
        clones = {group.name for group in self.engine.groups() if group.clone_of}
        island = next(h for h in self.simulator.control.hosts() if h.name == ISLAND.name)
        stores = {store.name for store in self.vcenter.inventory().datastores}
        usual = {"lun1", "lun2", "esx1-local", "esx2-local", HOME}
        return clones, set(island.luns), stores - usual


@pytest.fixture
def farm(engine, simulator, tmp_path) -> Iterator[Farm]:
    with VCenter.connect(simulator.settings()) as vcenter:
        yield Farm(engine, tmp_path / "disks/pool/pool", simulator, vcenter, tmp_path)


@pytest.fixture
def stock(simulator):
    """A backup product's own client."""
    settings = simulator.settings()
    context = ssl.create_default_context(cafile=str(settings.ca_file))
    instance = SmartConnect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        pwd=settings.password,
        sslContext=context,
    )
    yield instance
    Disconnect(instance)


ALL = {
    "db1": {2000: content_of("db1", "lun1"), 2001: content_of("db1", "lun2")},
    "app1": {2000: content_of("app1", "lun2")},
}
NOTHING: tuple[set[str], set[str], set[str]] = (set(), set(), set())


def test_placeholders_show_the_newest_run_and_old_ones_go(farm):
    before = farm.portals()
    done = farm.refresh(farm.run("r1"))
    assert (done.kept, done.removed, done.retired) == ([], [], [])
    assert farm.shown() == {vm: ("r1", disks) for vm, disks in ALL.items()}
    morefs = {placeholder.vm: placeholder.moref for placeholder in farm.placeholders.all()}
    first = farm.trace()
    assert [len(each) for each in first] == [1, 2, 2]

    done = farm.refresh(farm.run("r2"))

    assert (done.kept, done.retired) == ([], ["r1"])
    assert farm.shown() == {vm: ("r2", disks) for vm, disks in ALL.items()}
    assert {p.vm: p.moref for p in farm.placeholders.all()} == morefs, "jobs know them again"
    second = farm.trace()
    assert [len(each) for each in second] == [1, 2, 2]
    assert all(not old & new for old, new in zip(first, second, strict=True))

    done = clear(farm.island, farm.placeholders, None)
    assert (done.kept, done.retired) == ([], ["r2"])
    assert farm.trace() == NOTHING
    assert farm.portals() == before, "a rescan waits for none that is gone"
    assert {p.vm: p.moref for p in farm.placeholders.all()} == morefs
    farm.engine.delete_snapshot("prod", "atoll-1-r1")
    farm.engine.delete_snapshot("prod", "atoll-1-r2")


def test_a_run_that_a_job_reads_stays_until_it_is_done(farm, stock):
    farm.refresh(farm.run("r1"))
    db1 = next(p for p in farm.placeholders.all() if p.name == "db1")
    machine = vim.VirtualMachine(db1.moref, stock._stub)
    WaitForTask(machine.CreateSnapshotEx_Task("job", "", memory=False, quiesceSpec=None))

    done = farm.refresh(farm.run("r2"))

    assert [name for name in done.kept if "still reads it" in name], done.kept
    assert farm.placeholders.all()[1].run == "r1"
    assert farm.shown() == {"app1": ("r2", ALL["app1"])}
    assert len(farm.trace()[0]) == 2, "both runs are there"
    with pytest.raises(StorageConflictError):
        farm.engine.delete_snapshot("prod", "atoll-1-r1")
    done = clear(farm.island, farm.placeholders, "r1")
    assert "a backup job still reads run r1" in done.kept[0]

    WaitForTask(machine.snapshot.currentSnapshot.RemoveSnapshot_Task(removeChildren=False))
    done = farm.refresh(find_run(farm.engine, "r2"))
    assert (done.kept, done.retired) == ([], ["r1"])
    assert farm.shown() == {vm: ("r2", disks) for vm, disks in ALL.items()}


def test_placeholders_follow_renamed_and_removed_vms(farm, stock):
    farm.refresh(farm.run("r1"))
    find = stock.content.searchIndex.FindByUuid
    WaitForTask(find(None, UUIDS["db1"], True, True).Rename_Task("db1-new"))
    find(None, UUIDS["app1"], True, True).UnregisterVM()
    done = farm.refresh(farm.run("r2", "db1-new"))
    assert done.removed == ["app1"]
    assert farm.shown() == {"db1-new": ("r2", ALL["db1"])}
    done = farm.refresh(find_run(farm.engine, "r1"))
    assert done.kept == ["VM app1 is not in vCenter any more, so nothing shows it."]
    assert farm.shown() == {"db1": ("r1", ALL["db1"])}, "as it was called in that run"


def test_a_host_that_sees_what_it_must_not_ends_it(farm):
    run = farm.run("r1")
    present = farm.engine.present

    def leak(group, lun, initiators):
        shown = present(group, lun, [*initiators, ESX1.iqn])
        for portal in shown.portals:
            farm.simulator.control.add_portal(ESX1.name, f"{portal.address}:{portal.port}")
        farm.vcenter.rescan(ESX1.name)
        return shown

    farm.engine.present = leak
    with pytest.raises(StorageConflictError, match=r"esx1\.lab sees LUNs of run r1"):
        farm.refresh(run)
    farm.vcenter.rescan(ESX1.name)
    farm.vcenter.rescan(ISLAND.name)
    assert farm.trace()[0] == set()
    assert farm.shown() == {}


def test_the_island_has_an_initiator_of_its_own(farm):
    hosts = farm.vcenter.inventory().hosts
    with pytest.raises(ConfigurationError, match="no host esx9 to be the island"):
        island_host(hosts, "esx9")
    twins = [replace(host, iqn=ESX1.iqn) for host in hosts]
    with pytest.raises(ConfigurationError, match=r"same iSCSI name as esx1\.lab, esx2\.lab"):
        island_host(twins, ISLAND.name)


class Cut(BaseException):
    """The end of the process, as far as what runs in it can tell."""


STEPS = (
    *("present", "rescan", "seen_by", "copies", "take_in", "volumes", "put", "let_go", "withdraw"),
    *("forget", "delete_clone"),
)
QUICK = {("take_in", True), ("put", False), ("withdraw", True)}
CUTS = [
    pytest.param(step, after, marks=[] if (step, after) in QUICK else [pytest.mark.soak])
    for step in STEPS
    for after in (False, True)
]


@pytest.mark.parametrize(("step", "after"), CUTS)
def test_cut_short_anywhere_the_next_refresh_puts_it_right(farm, monkeypatch, step, after):
    """Once before and once after each call to the storage or vCenter, of a refresh that also retires."""
    farm.refresh(farm.run("r1"))
    run = farm.run("r2")
    island, placeholders = farm.island, farm.placeholders
    fired = []
    for owner in (farm.engine, island._volumes, placeholders):
        if not hasattr(owner, step):
            continue
        real = getattr(owner, step)

        def cut(*args, _real=real, **kwargs):
            fired.append(step)
            if after:
                _real(*args, **kwargs)
            raise Cut

        monkeypatch.setattr(owner, step, cut)
    alive = placeholders.hardware(list(UUIDS.values()))
    with pytest.raises(Cut):
        refresh(island, placeholders, run, alive)
    assert fired
    monkeypatch.undo()

    done = farm.refresh(run)

    assert done.kept == []
    assert farm.shown() == {vm: ("r2", disks) for vm, disks in ALL.items()}
    assert [len(each) for each in farm.trace()] == [1, 2, 2]
    clear(farm.island, farm.placeholders, None)
    assert farm.trace() == NOTHING
