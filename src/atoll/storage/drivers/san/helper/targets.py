"""Makes LIO serve what it should: a target of its own for each LUN over iSCSI, all LUNs at each
Fibre Channel port."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.storage.drivers.san.helper import backstores, configfs, fabrics
from atoll.storage.drivers.san.helper.backstores import Backstore
from atoll.storage.drivers.san.helper.fabrics import ISCSI, Access, Fabric, PortalGroup

ISCSI_UNIT = 0
"""A LUN's number in its own target."""

_ATTRIBUTES = {
    "generate_node_acls": "0",
    "demo_mode_write_protect": "1",
    "demo_mode_discovery": "0",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """A backstore as it is to be reached: over iSCSI as `target`, over FC as LUN `unit`."""

    backstore: Backstore
    target: str
    unit: int
    accesses: tuple[Access, ...]

    @property
    def iscsi(self) -> list[Access]:
        """Those who come over iSCSI."""
        return [access for access in self.accesses if not is_fc(access.initiator)]

    @property
    def fc(self) -> list[Access]:
        """Those who come over Fibre Channel."""
        return [access for access in self.accesses if is_fc(access.initiator)]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where initiators come in: `listen` are `address:port`, `fc_ports` are WWPNs of `fc_fabric`."""

    listen: tuple[str, ...]
    fc_ports: tuple[str, ...] = ()
    fc_fabric: Fabric = fabrics.QLA2XXX


def is_fc(initiator: str) -> bool:
    """Whether an initiator's name is a Fibre Channel port's."""
    return initiator.startswith("naa.")


def serve(pool: str, group: str, wanted: Sequence[Exported], ports: Ports) -> Iterator[str]:
    """Have exactly these of a group served; yields the target of each that was not so."""
    kept = {exported.backstore.place for exported in wanted}
    for owner, _, place in list(backstores.of_pool(pool)):
        if owner == group and place not in kept:
            _remove(place)
    for exported in wanted:
        changed = not exported.backstore.is_right()
        if changed:
            withdraw(pool, exported.backstore.volume)
            exported.backstore.make()
        changed |= _serve_iscsi(exported, ports)
        changed |= _serve_fc(exported, ports)
        if changed:
            yield exported.target


def withdraw(pool: str, volume: str) -> None:
    """End all access to a volume, whatever group it was served for."""
    for _, each, place in list(backstores.of_pool(pool)):
        if each == volume:
            _remove(place)


def served(pool: str) -> dict[str, set[str]]:
    """Volumes that LIO has, by group."""
    found: dict[str, set[str]] = {}
    for group, volume, _ in backstores.of_pool(pool):
        found.setdefault(group, set()).add(volume)
    return found


def _serve_iscsi(exported: Exported, ports: Ports) -> bool:
    portal_group = PortalGroup(ISCSI, exported.target)
    backstore = exported.backstore.place
    if not exported.iscsi:
        if portal_group.exists():
            portal_group.remove()
            return True
        return False
    chap = any(access.chap for access in exported.iscsi)
    whole = portal_group.exists() and portal_group.is_enabled()
    if whole and (
        portal_group.units(backstore) != [ISCSI_UNIT]
        or configfs.read(portal_group.place / "attrib" / "authentication") != str(int(chap))
    ):
        whole = False
    if not whole:
        # Switched on last, so one that is off was left half-made.
        portal_group.remove()
        portal_group.make()
        for name, value in {**_ATTRIBUTES, "authentication": str(int(chap))}.items():
            configfs.write(portal_group.place / "attrib" / name, value)
        portal_group.attach(ISCSI_UNIT, backstore)
    changed = _converge(portal_group, ISCSI_UNIT, exported.iscsi)
    changed |= _listen(portal_group, ports.listen)
    portal_group.enable()
    return changed or not whole


def _serve_fc(exported: Exported, ports: Ports) -> bool:
    fabric, backstore = ports.fc_fabric, exported.backstore.place
    accesses = [Access(fabric.wwn(access.initiator), access.read_only) for access in exported.fc]
    wanted = [PortalGroup(fabric, port) for port in ports.fc_ports] if accesses else []
    changed = False
    for portal_group in _portal_groups():
        # Also at ports the settings no longer name.
        if not portal_group.is_iscsi() and portal_group not in wanted:
            for unit in portal_group.units(backstore):
                portal_group.detach(unit)
                changed = True
    for portal_group, port in zip(wanted, ports.fc_ports, strict=False):
        if not portal_group.exists():
            if fabric is fabrics.QLA2XXX:
                fabrics.require_port(port)
            portal_group.make()
        if portal_group.units(backstore) != [exported.unit]:
            portal_group.detach(exported.unit)
            portal_group.attach(exported.unit, backstore)
            changed = True
        changed |= _converge(portal_group, exported.unit, accesses)
        portal_group.enable()
    return changed


def _converge(portal_group: PortalGroup, unit: int, accesses: Sequence[Access]) -> bool:
    """Give exactly these rights to a LUN; whether any was not so."""
    changed = False
    wanted = {access.initiator for access in accesses}
    for initiator in portal_group.initiators(unit):
        if initiator not in wanted:
            portal_group.revoke(unit, initiator)
            changed = True
    for access in accesses:
        if not portal_group.grants(unit, access):
            # Anew: who logged in under other rules must log in again under these.
            portal_group.revoke(unit, access.initiator)
            portal_group.grant(unit, access)
            changed = True
    return changed


def _listen(portal_group: PortalGroup, addresses: Sequence[str]) -> bool:
    changed = False
    present = {each.name for each in configfs.children(portal_group.place / "np")}
    for address in present - set(addresses):
        configfs.remove(portal_group.place / "np" / address)
        changed = True
    for address in addresses:
        changed |= configfs.make(portal_group.place / "np" / address)
    return changed


def _remove(backstore: Path) -> None:
    """Remove a backstore and every LUN that shows it; iSCSI targets go with their only LUN."""
    for portal_group in _portal_groups():
        for unit in portal_group.units(backstore):
            if portal_group.is_iscsi():
                portal_group.remove()
                break
            portal_group.detach(unit)
    configfs.remove(backstore)


def _portal_groups() -> Iterator[PortalGroup]:
    for fabric in (ISCSI, *fabrics.FC_FABRICS.values()):
        directory = configfs.root() / fabric.name
        for target in configfs.children(directory):
            if (target / "tpgt_1").is_dir():
                yield PortalGroup(fabric, target.name)
