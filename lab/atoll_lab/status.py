"""What of a lab is running."""

from dataclasses import dataclass

from atoll.model.errors import AtollError
from atoll.settings import load_settings
from atoll.wiring import open_agents, open_engine
from atoll_lab import blueprint
from atoll_lab.guests.qemu import status as guest_status
from atoll_lab.places import Places
from atoll_lab.running import read_record
from atoll_lab.up import instance_uuid
from atoll_lab.vcenter.control import Control, ControlError


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One part of the lab: `state` is `up`, `down` or `absent`."""

    part: str
    state: str
    detail: str


def lab_status(where: Places) -> list[PartStatus]:
    """Every part, whether or not the lab was ever made."""
    if read_record(where) is None:
        return [PartStatus(f"lab {where.name}", "absent", f"atoll lab up {where.name} makes it")]
    return [_storage(where), _vcenter(where), *_guests(where)]


def _storage(where: Places) -> PartStatus:
    try:
        engine = open_engine(load_settings(where.settings))
    except AtollError as error:
        return PartStatus("storage", "down", str(error))
    portals = sorted(
        f"{item.lun} at {portal.address}:{portal.port}"
        for item in engine.presentations()
        for portal in item.portals
    )
    return PartStatus("storage", "up", ", ".join(portals))


def _vcenter(where: Places) -> PartStatus:
    control = Control(where.vcenter)
    try:
        hosts = control.hosts()
    except ControlError as error:
        return PartStatus("vCenter", "down", str(error))
    seen = "; ".join(f"{host.name} sees {len(host.luns)} LUNs" for host in hosts)
    return PartStatus("vCenter", "up", f"port {control.endpoint().port}: {seen}")


def _guests(where: Places) -> list[PartStatus]:
    agents = open_agents(load_settings(where.settings))
    rows = []
    for vm in blueprint.VMS:
        running = guest_status(where.guests / vm.name)
        if running is None:
            rows.append(PartStatus(vm.name, "down", "QEMU is not running"))
            continue
        try:
            state = f"agent {agents[instance_uuid(where.name, vm.name)].status().state}"
        except AtollError as error:
            state = str(error)
        rows.append(PartStatus(vm.name, "up", f"process {running.pid}, {state}"))
    return rows
