"""`atoll inventory`: every VM and the LUN below each of its disks."""

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.table import Table

from atoll.cli import context
from atoll.cli.following import follow as follow_changes
from atoll.cli.output import as_json, draw_table, err, out, size
from atoll.model.inventory import Inventory
from atoll.model.storage import Lun
from atoll.service.site import Site


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
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Go on and show what changes in vCenter; with --json a line a change.",
        ),
    ] = False,
) -> None:
    """List VMs with host, datastore, LUN, LUN group and storage system."""
    site = context.site()
    if follow:
        follow_changes(
            site.vcenter(),
            lambda: _drawn(_rows(site, site.vcenter().inventory())),
            as_json=json,
        )
        return
    found = site.vcenter().inventory()
    rows = _rows(site, found)
    for line in _without_rows(found):
        err.print(line, style="dim")
    if json:
        as_json(rows)
    else:
        out.print(_drawn(rows))


def _drawn(rows: list[DiskRow]) -> Table:
    return draw_table(
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


def _rows(site: Site, found: Inventory) -> list[DiskRow]:
    engine = site.engine()
    luns: dict[str, Lun] = {lun.naa: lun for group in engine.groups() for lun in group.luns}
    agents = set(site.agents())
    rows = []
    for vm in sorted(found.vms, key=lambda vm: vm.name):
        for disk in vm.disks:
            naas = found.datastore(disk.datastore).extents
            if disk.rdm:
                naas = (disk.lun,) if disk.lun else ()
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
                    storage=engine.name if known else None,
                    agent=vm.instance_uuid in agents,
                )
            )
    return rows
