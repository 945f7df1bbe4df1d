"""A small simulated site: two production hosts, an island host, two LUNs, three VMs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.vsphere.client import VCenterSettings
from atoll_lab.blueprint import HOSTS
from atoll_lab.vcenter.control import Control, NewDisk
from atoll_lab.vcenter.guest_hook import GuestHook
from atoll_lab.vcenter.simulator import Simulator
from atoll_lab.vcenter.site import PowerHook
from fake_fabric import FileFabric
from vmfs_headers import write_vmfs_headers

USER, PASSWORD = "backup@vsphere.local", "s3cret-word"
ESX1, ESX2, ISLAND = HOSTS
NAA1, NAA2 = "naa.6001405" + "1" * 25, "naa.6001405" + "2" * 25
DB1_UUID = "50000000-0000-4000-8000-0000000000d1"
APP1_UUID = "50000000-0000-4000-8000-0000000000a1"
MIB = 1 << 20


@dataclass
class SimulatedSite:
    """A running simulator, the network behind it and the way to change it."""

    simulator: Simulator
    fabric: FileFabric
    control: Control
    directory: Path
    uuids: dict[str, str]

    def settings(self, **changes: object) -> VCenterSettings:
        """Right settings, or wrong ones on purpose."""
        endpoint = self.simulator.endpoint
        values: dict[str, object] = {
            "host": endpoint.host,
            "port": endpoint.port,
            "user": USER,
            "password": PASSWORD,
            "ca_file": Path(endpoint.ca_file),
            **changes,
        }
        return VCenterSettings(**values)  # type: ignore[arg-type]


@contextmanager
def simulated_site(
    directory: Path,
    page_size: int = 100,
    power_hook: PowerHook | None = None,
    guests: GuestHook | None = None,
) -> Iterator[SimulatedSite]:
    """Both LUNs presented to both production hosts and mounted; the island sees nothing."""
    fabric = FileFabric()
    uuids = {}
    for number, (naa, label) in enumerate(((NAA1, "vmfs1"), (NAA2, "vmfs2")), start=1):
        uuids[label] = write_vmfs_headers(directory / label, naa, label, number)
        fabric.add(directory / label, naa)
        fabric.present(naa, ESX1.iqn, ESX2.iqn)
    where = directory / "vcenter"
    with Simulator(
        where, fabric, USER, PASSWORD, page_size=page_size, power_hook=power_hook, guests=guests
    ) as simulator:
        control = Control(where)
        for host in HOSTS:
            control.add_portal(host.name, fabric.portal)
            control.rescan(host.name)
        add_vms(control)
        yield SimulatedSite(simulator, fabric, control, where, uuids)


def add_vms(control: Control) -> None:
    """db1 over both LUNs, app1 on one, scratch1 on a host's own disk."""
    control.add_vm(
        "db1",
        "vmfs1",
        "db1/db1.vmx",
        [
            NewDisk(2000, "Hard disk 1", "db1/db1.vmdk", 3072 * MIB, "vmfs1"),
            NewDisk(2001, "Hard disk 2", "db1/db1_1.vmdk", 512 * MIB, "vmfs2"),
        ],
        ESX1.name,
        "Debian GNU/Linux 12 (64-bit)",
        DB1_UUID,
        powered_on=True,
    )
    control.add_vm(
        "app1",
        "vmfs2",
        "app1/app1.vmx",
        [NewDisk(2000, "Hard disk 1", "app1/app1.vmdk", 2048 * MIB, "vmfs2")],
        ESX2.name,
        "Debian GNU/Linux 12 (64-bit)",
        APP1_UUID,
        powered_on=True,
    )
    control.add_vm(
        "scratch1",
        "esx1-local",
        "scratch1/scratch1.vmx",
        [NewDisk(2000, "Hard disk 1", "scratch1/scratch1.vmdk", 64 * MIB, "esx1-local")],
        ESX1.name,
        "Other Linux (64-bit)",
    )
