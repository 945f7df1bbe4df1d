"""What a VM is made of, in words that no hypervisor's API is needed for."""

from dataclasses import dataclass, field

CONTROLLERS = {
    "pvscsi": "scsi",
    "lsilogic": "scsi",
    "lsisas1068": "scsi",
    "buslogic": "scsi",
    "ahci": "sata",
    "nvme": "nvme",
    "ide": "ide",
}
"""Kinds of controllers, as a VMX names them, and what the addresses of their disks begin with."""

CARDS = ("vmxnet3", "vmxnet2", "vmxnet", "e1000", "e1000e", "vlance")
"""Kinds of network cards."""


@dataclass(frozen=True, slots=True)
class Controller:
    """A disk controller. `kind` is one of CONTROLLERS, `sharing` `none`, `virtual` or `physical`."""

    kind: str
    bus: int
    sharing: str = "none"

    @property
    def place(self) -> str:
        """What the addresses of its disks begin with: `scsi0`."""
        return f"{CONTROLLERS[self.kind]}{self.bus}"


@dataclass(frozen=True, slots=True)
class HardDisk:
    """A disk of `size_bytes` at an `address` (`scsi0:1`), its files on `datastore`.

    `mode` is vSphere's: `persistent`, `independent_persistent` and so on.
    """

    address: str
    size_bytes: int
    datastore: str
    mode: str = "persistent"

    @property
    def controller(self) -> str:
        """The place of its controller."""
        return self.address.partition(":")[0]

    @property
    def unit(self) -> int:
        """Its place at the controller."""
        return int(self.address.partition(":")[2])


@dataclass(frozen=True, slots=True)
class NetworkCard:
    """A network card. `kind` is one of CARDS; without a `mac` it gets a new one."""

    kind: str
    network: str
    mac: str | None = None
    connected: bool = True


@dataclass(frozen=True, slots=True)
class VmHardware:
    """A VM to be made. `guest_os` is as a VMX has it (`debian12-64`).

    `version` is that of the virtual hardware, None for what the host has as its own. `extra` are
    settings by their VMX names.
    """

    name: str
    guest_os: str
    cpus: int
    cores_per_socket: int
    memory_mb: int
    firmware: str
    secure_boot: bool
    annotation: str
    version: int | None
    controllers: tuple[Controller, ...]
    disks: tuple[HardDisk, ...]
    cards: tuple[NetworkCard, ...]
    extra: dict[str, str] = field(default_factory=dict)
