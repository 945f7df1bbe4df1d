"""What vCenter knows: VMs, their disks, hosts, datastores, and the LUNs below."""

from dataclasses import dataclass

MAX_DELTAS = 32
"""Deltas that vSphere lets lie on one another (VMware, "Best practices for using snapshots")."""


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
    `rdm_mode` of a raw mapping is `virtualMode` or `physicalMode` where vCenter says,
    `lun_uuid` what vSphere calls its LUN and `lun` that LUN's canonical name
    (`naa.…`), empty where no host tells. `below` are the files of a disk with
    VMware snapshots that lie below the one that is written to, the nearest
    first, as `[datastore] path`.
    """

    key: int
    label: str
    datastore: str
    path: str
    size_bytes: int
    mode: str
    rdm: bool = False
    rdm_mode: str | None = None
    lun_uuid: str = ""
    lun: str = ""
    below: tuple[str, ...] = ()

    @property
    def left_out_by_vmware(self) -> bool:
        """Whether a VMware snapshot leaves it out, so that it is written to meanwhile."""
        return self.rdm_mode == "physicalMode" or self.mode.startswith("independent")

    @property
    def folders(self) -> set[str]:
        """Folders that its files lie in, as `[datastore] folder`; more than one in a linked clone."""
        files = (f"[{self.datastore}] {self.path}", *self.below)
        return {file.rpartition("/")[0] for file in files}

    @property
    def forgets(self) -> bool:
        """Whether what a running VM writes to it is kept aside and lost when it is switched off."""
        return self.mode in {"independent_nonpersistent", "nonpersistent"}


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """A VM where it is at this moment. `instance_uuid` is how Atoll tracks it; morefs change.

    `bios_uuid` is what the guest itself can read of the VM's SMBIOS; copies may share it.
    A suspended VM is not powered on; part of its state is in its memory file.
    `has_snapshot` is True whenever a disk has files below the one that is written
    to; with `linked_clone` some are another VM's, with `consolidation_needed`
    some are left over from a VMware snapshot that was removed.
    """

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
    suspended: bool = False
    linked_clone: bool = False
    consolidation_needed: bool = False
    bios_uuid: str = ""


@dataclass(frozen=True, slots=True)
class LeftOutVm:
    """A VM that vCenter shows and that cannot be protected as it is now, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a VM is at one moment, and which files it writes to.

    `datastores` are all it has files on, sorted; `disks` are (device key,
    datastore, path in it), sorted: a VMware snapshot or a storage vMotion changes them.
    `raw_luns` are (device key, vSphere's name of the LUN) of raw mappings, sorted.
    """

    host: str
    datastores: tuple[str, ...]
    disks: tuple[tuple[int, str, str], ...]
    powered_on: bool
    has_snapshot: bool
    raw_luns: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """One consistent look at vCenter. `Host.name` and `Datastore.name` are the keys used by VMs."""

    hosts: tuple[Host, ...]
    datastores: tuple[Datastore, ...]
    vms: tuple[VirtualMachine, ...]
    left_out: tuple[LeftOutVm, ...] = ()

    def datastore(self, name: str) -> Datastore:
        """The datastore of that name; KeyError if there is none."""
        for datastore in self.datastores:
            if datastore.name == name:
                return datastore
        raise KeyError(name)
