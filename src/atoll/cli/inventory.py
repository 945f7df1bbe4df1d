"""`atoll inventory`: every VM and the LUN below each of its disks."""

from dataclasses import dataclass
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, size, table
from atoll.model.inventory import Inventory
from atoll.model.storage import Lun


@dataclass(frozen=True, slots=True)
class DiskRow:
    """One line of the inventory."""

    vm: str
    instance_uuid: str
    powered_on: bool
    host: str
    disk: str
    size_bytes: int
    datastore: str
    luns: tuple[str, ...]
    naas: tuple[str, ...]
    group: str | None
    storage: str | None
    agent: bool


def inventory(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List VMs with host, datastore, LUN, LUN group and storage system."""
    site = context.site()
    engine = site.engine()
    luns = {lun.naa: lun for group in engine.groups() for lun in group.luns}
    found = site.vcenter().inventory()
    rows = _rows(found, luns, engine.name, set(site.agents()))
    for line in _without_rows(found):
        err.print(line, style="dim")
    if json:
        as_json(rows)
        return
    table(
        ["VM", "host", "disk", ">size", "datastore", "~storage / group / LUN", "agent"],
        [
            (
                row.vm if row.powered_on else f"{row.vm} (off)",
                row.host,
                row.disk,
                size(row.size_bytes),
                row.datastore,
                f"{row.storage} / {row.group} / {', '.join(row.luns)}"
                if row.group
                else "no storage snapshot covers it",
                "yes" if row.agent else "no",
            )
            for row in rows
        ],
    )


def _without_rows(found: Inventory) -> list[str]:
    """A line for each VM that has nothing to show in the table, and why."""
    reasons = {vm.name: vm.reason for vm in found.left_out}
    reasons |= {vm.name: "it has no disk" for vm in found.vms if not vm.disks}
    return [f"Left out: {name}: {reason}." for name, reason in sorted(reasons.items())]


def _rows(found: Inventory, luns: dict[str, Lun], storage: str, agents: set[str]) -> list[DiskRow]:
    rows = []
    for vm in sorted(found.vms, key=lambda vm: vm.name):
        for disk in vm.disks:
            naas = found.datastore(disk.datastore).extents
            known = [luns[naa] for naa in naas if naa in luns]
            groups = {lun.group for lun in known}
            rows.append(
                DiskRow(
                    vm=vm.name,
                    instance_uuid=vm.instance_uuid,
                    powered_on=vm.powered_on,
                    host=vm.host,
                    disk=disk.label,
                    size_bytes=disk.size_bytes,
                    datastore=disk.datastore,
                    luns=tuple(lun.name for lun in known),
                    naas=naas,
                    group=groups.pop() if len(groups) == 1 else None,
                    storage=storage if known else None,
                    agent=vm.instance_uuid in agents,
                )
            )
    return rows
