"""Two VMs with disks on real VMFS volumes behind real iSCSI, a simulated vCenter, and the island."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.blocks.readers import MappedReader
from atoll.blocks.vmfs import open_volumes
from atoll.director.certificate import certificate
from atoll.director.plan import make_plan
from atoll.island.placing import refresh
from atoll.island.presentation import Island, island_host
from atoll.island.runs import CapturedRun, find_run
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.storage.initiator import IscsiReader
from atoll.vsphere.client import VCenter
from atoll_lab.blueprint import HOSTS
from atoll_lab.pool import image
from atoll_lab.vcenter.control import NewDisk
from atoll_lab.vmfs import Volume

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
        self.pool = pool
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

    def write(self, lun: str, path: str, offset: int, data: bytes) -> None:
        """What a guest writes to its disk, at a place in the VMDK at `path`."""
        where = image(self.pool, "prod", lun)
        with Volume(where) as volume:
            (extent,) = volume.extents(path)
        with where.open("r+b") as stream:
            stream.seek(extent.lun_offset + offset)
            stream.write(data)

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
        with self.read_lun(naa) as reader:
            (volume,) = open_volumes({"lun": reader})
            disk = MappedReader(volume.disk_map("/" + inside), {"lun": reader})
            return disk.read(0, disk.size_bytes)

    @contextmanager
    def read_lun(self, naa: str) -> Iterator[IscsiReader]:
        """A LUN over iSCSI, as the island's host reads it; nobody else may."""
        names = {
            lun.naa: (group.name, lun.name) for group in self.engine.groups() for lun in group.luns
        }
        (shown,) = [
            each for each in self.engine.presentations() if (each.group, each.lun) == names.get(naa)
        ]
        assert shown.initiators == (ISLAND.iqn,)
        reader = IscsiReader(shown.portals, ISLAND.iqn)
        try:
            yield reader
        finally:
            reader.close()

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
