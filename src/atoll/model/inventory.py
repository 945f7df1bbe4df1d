"""What vCenter knows: VMs, their disks, hosts, datastores, and the LUNs below."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """An ESX host; `moref` is vCenter's id, `iqn` its software iSCSI initiator name if it has one."""

    moref: str
    name: str
    iqn: str | None


@dataclass(frozen=True, slots=True)
class Datastore:
    """A datastore; `extents` are the canonical LUN names (`naa.…`) of a VMFS volume, in order.

    A local disk or NFS share has `kind` other than `VMFS` or `shared` False.
    """

    moref: str
    name: str
    kind: str
    extents: tuple[str, ...]
    shared: bool
    vmfs_uuid: str | None


@dataclass(frozen=True, slots=True)
class VirtualDisk:
    """A disk of a VM. `path` is inside the datastore, e.g. `db1/db1.vmdk`.

    `key` is the device key, stable for the life of the disk in the VM.
    `mode` is vSphere's disk mode (`persistent`, `independent_persistent`, …).
    """

    key: int
    label: str
    datastore: str
    path: str
    size_bytes: int
    mode: str
    rdm: bool = False


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """A VM where it is at this moment. `instance_uuid` is how Atoll tracks it; morefs change."""

    moref: str
    instance_uuid: str
    name: str
    host: str
    powered_on: bool
    template: bool
    guest_os: str
    disks: tuple[VirtualDisk, ...]
    has_snapshot: bool
    vmx_path: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a VM is at one moment, and which files it writes to.

    `datastores` are all it has files on, sorted; `disks` are (device key, path
    in the datastore), sorted: a VMware snapshot or a storage vMotion changes them.
    """

    host: str
    datastores: tuple[str, ...]
    disks: tuple[tuple[int, str], ...]
    powered_on: bool
    has_snapshot: bool


@dataclass(frozen=True, slots=True)
class Inventory:
    """One consistent look at vCenter. `Host.name` and `Datastore.name` are the keys used by VMs."""

    hosts: tuple[Host, ...]
    datastores: tuple[Datastore, ...]
    vms: tuple[VirtualMachine, ...]

    def datastore(self, name: str) -> Datastore:
        """The datastore of that name; KeyError if there is none."""
        for datastore in self.datastores:
            if datastore.name == name:
                return datastore
        raise KeyError(name)
