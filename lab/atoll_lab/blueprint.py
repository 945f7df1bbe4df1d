"""What every lab consists of: hosts, LUNs, and the VMs on them."""

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20

GROUP = "prod"
STORAGE = "san1"
POOL_BYTES = 40 * GIB


@dataclass(frozen=True, slots=True)
class HostPlan:
    """An ESX host of the simulator. The island host is kept away from production LUNs."""

    name: str
    iqn: str
    island: bool = False


@dataclass(frozen=True, slots=True)
class LunPlan:
    """A LUN of the group and the VMFS volume on it."""

    name: str
    size_bytes: int
    datastore: str


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk of a VM: `image` names the role's disk image, `datastore` where its VMDK goes."""

    image: str
    datastore: str
    key: int
    label: str


@dataclass(frozen=True, slots=True)
class VmPlan:
    """A VM. `application` adds to its agent's settings the witness: a question whose answer during a
    hold must be its answer after a restore."""

    name: str
    host: str
    memory_mib: int
    disks: tuple[DiskPlan, ...]
    application: dict[str, object]


HOSTS = (
    HostPlan("esx1.lab", "iqn.1998-01.com.vmware:esx1"),
    HostPlan("esx2.lab", "iqn.1998-01.com.vmware:esx2"),
    HostPlan("island1.lab", "iqn.1998-01.com.vmware:island1", island=True),
)

LUNS = (
    LunPlan("lun1", 8 * GIB, "vmfs1"),
    LunPlan("lun2", 8 * GIB, "vmfs2"),
)

WITNESS = "SELECT concat(max(id), ' of ', count(*)) FROM ledger"

# PostgreSQL's data and its log lie on different LUNs, so that a snapshot that is not atomic over
# the group would really break it.
VMS = (
    VmPlan(
        name="db1",
        host="esx1.lab",
        memory_mib=1024,
        disks=(
            DiskPlan("system", "vmfs1", 2000, "Hard disk 1"),
            DiskPlan("data", "vmfs1", 2001, "Hard disk 2"),
            DiskPlan("wal", "vmfs2", 2002, "Hard disk 3"),
        ),
        application={
            "kind": "postgresql",
            "name": "15-main",
            "database": "bench",
            "witness": WITNESS,
        },
    ),
    VmPlan(
        name="app1",
        host="esx2.lab",
        memory_mib=1024,
        disks=(DiskPlan("system", "vmfs2", 2000, "Hard disk 1"),),
        application={
            "kind": "mariadb",
            "name": "mariadb",
            "database": "shop",
            "witness": WITNESS,
        },
    ),
)
