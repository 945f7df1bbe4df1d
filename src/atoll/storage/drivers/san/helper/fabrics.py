"""What LIO's fabrics have in common, and what not: iSCSI, Fibre Channel, loopback."""

import re
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.san.helper import configfs

_WWPN = re.compile(r"(naa\.)?(0x)?([0-9a-f]{16}|([0-9a-f]{2}:){7}[0-9a-f]{2})", re.IGNORECASE)
FC_HOSTS = Path("/sys/class/fc_host")


@dataclass(frozen=True, slots=True)
class Fabric:
    """A way to LUNs. `colons`: WWNs are written as pairs with colons, else as `naa.` and digits.

    `ends_sessions`: an initiator without any LUN is to be logged out. Where that
    can wait for ever on the initiator its empty entry stays instead, and shows
    it nothing.
    """

    name: str
    module: str
    colons: bool = False
    ends_sessions: bool = False

    def wwn(self, name: str) -> str:
        """A port's name as the fabric's directories have it."""
        if self.name == ISCSI.name:
            return name
        digits = wwpn(name)
        if self.colons:
            return ":".join(digits[at : at + 2] for at in range(0, 16, 2))
        return f"naa.{digits}"

    @property
    def place(self) -> Path:
        """Its directory."""
        return configfs.fabric_directory(self.name, self.module)


ISCSI = Fabric("iscsi", "iscsi_target_mod", ends_sessions=True)
QLA2XXX = Fabric("qla2xxx", "tcm_qla2xxx", colons=True)
LOOPBACK = Fabric("loopback", "tcm_loop")
FC_FABRICS = {fabric.name: fabric for fabric in (QLA2XXX, LOOPBACK)}


def wwpn(name: str) -> str:
    """The 16 hex digits of a Fibre Channel port's name, however written."""
    if not _WWPN.fullmatch(name):
        raise StorageConflictError(
            f"{name!r} is no Fibre Channel port name; write `naa.` and 16 hex digits."
        )
    return name.lower().removeprefix("naa.").removeprefix("0x").replace(":", "")


def require_port(name: str) -> None:
    """StorageUnreachableError unless this machine has that Fibre Channel port."""
    every = sorted(FC_HOSTS.iterdir()) if FC_HOSTS.is_dir() else []
    present = [wwpn(configfs.read(host / "port_name")) for host in every]
    if wwpn(name) not in present:
        raise StorageUnreachableError(
            f"The SAN server has no Fibre Channel port {name} (it has "
            f"{', '.join(present) or 'none'}); correct fc_ports, or see whether its driver runs."
        )


@dataclass(frozen=True, slots=True)
class Access:
    """An initiator's right to a LUN, as the fabric writes its name."""

    initiator: str
    read_only: bool = False
    chap: tuple[str, str, str, str] | None = None
    """User, secret, and the user and secret the target answers with, empty when it does not."""


class PortalGroup:
    """One target portal group (always number 1) of a fabric's target."""

    def __init__(self, fabric: Fabric, target: str) -> None:
        self.target = fabric.place / fabric.wwn(target)
        self.place = self.target / "tpgt_1"
        self._fabric = fabric

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PortalGroup) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)

    def is_iscsi(self) -> bool:
        """Whether it is a LUN's own target."""
        return self._fabric == ISCSI

    def exists(self) -> bool:
        """Whether it is there."""
        return self.place.is_dir()

    def is_enabled(self) -> bool:
        """Whether initiators are let in; a fabric without such a switch lets them."""
        return configfs.read(self.place / "enable") in ("1", "")

    def make(self) -> None:
        """Make it, switched off."""
        configfs.make(self.place)

    def enable(self) -> None:
        """Let initiators in."""
        if (self.place / "enable").exists() and not self.is_enabled():
            configfs.write(self.place / "enable", "1")

    def units(self, backstore: Path) -> list[int]:
        """The LUN numbers under which a backstore is here."""
        return [
            int(lun.name.removeprefix("lun_"))
            for lun in configfs.children(self.place / "lun")
            if configfs.links(lun) == [backstore]
        ]

    def attach(self, unit: int, backstore: Path) -> None:
        """Have a backstore as that LUN."""
        lun = self.place / "lun" / f"lun_{unit}"
        configfs.make(lun)
        configfs.link(lun, backstore)

    def detach(self, unit: int) -> None:
        """Take a LUN away from everybody."""
        for initiator in self.initiators(unit):
            self.revoke(unit, initiator)
        lun = self.place / "lun" / f"lun_{unit}"
        configfs.unlink(lun)
        configfs.remove(lun)

    def initiators(self, unit: int) -> list[str]:
        """Those who have a right to a LUN."""
        return [
            acl.name
            for acl in configfs.children(self.place / "acls")
            if (acl / f"lun_{unit}").is_dir()
        ]

    def grants(self, unit: int, access: Access) -> bool:
        """Whether exactly this right is given."""
        acl = self.place / "acls" / access.initiator
        mapped = acl / f"lun_{unit}"
        return (
            configfs.links(mapped) == [self.place / "lun" / f"lun_{unit}"]
            and configfs.read(mapped / "write_protect") == str(int(access.read_only))
            and _chap_of(acl) == (access.chap or ("", "", "", ""))
        )

    def grant(self, unit: int, access: Access) -> None:
        """Let an initiator reach a LUN."""
        acl = self.place / "acls" / access.initiator
        configfs.make(acl)
        if access.chap is not None:
            for name, value in zip(_CHAP, access.chap, strict=True):
                if value:
                    configfs.write(acl / "auth" / name, value)
        mapped = acl / f"lun_{unit}"
        configfs.make(mapped)
        configfs.link(mapped, self.place / "lun" / f"lun_{unit}")
        configfs.write(mapped / "write_protect", str(int(access.read_only)))

    def revoke(self, unit: int, initiator: str) -> None:
        """Take an initiator's right to a LUN; over iSCSI its sessions end before this returns."""
        acl = self.place / "acls" / initiator
        mapped = acl / f"lun_{unit}"
        configfs.unlink(mapped)
        configfs.remove(mapped)
        if self._fabric.ends_sessions:
            configfs.remove(acl)

    def remove(self) -> None:
        """Remove it with all sessions, and its target when nothing else is in that."""
        if self.exists():
            if (self.place / "enable").exists():
                configfs.write(self.place / "enable", "0")
            for lun in configfs.children(self.place / "lun"):
                self.detach(int(lun.name.removeprefix("lun_")))
            for kind in ("acls", "np"):
                for each in configfs.children(self.place / kind):
                    configfs.remove(each)
            configfs.remove(self.place)
        configfs.remove(self.target)


_CHAP = ("userid", "password", "userid_mutual", "password_mutual")


def _chap_of(acl: Path) -> tuple[str, ...]:
    values = (configfs.read(acl / "auth" / name) for name in _CHAP)
    return tuple("" if value == "NULL" else value for value in values)
