"""The pool as a whole, and who sees which LUN."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, out, size, table
from atoll.cli.storage import devices, luns, snapshots
from atoll.cli.storage.arguments import Json, Lun, System, ask, engine
from atoll.model.extents import total_bytes
from atoll.storage.federation import systems_of
from atoll.wiring import create_storage

app = typer.Typer(help="Provision LUNs and look at the pool.", no_args_is_help=True)
app.add_typer(luns.group_app, name="group")
app.add_typer(luns.lun_app, name="lun")
app.add_typer(snapshots.snapshot_app, name="snapshot")
app.add_typer(snapshots.clone_app, name="clone")
app.add_typer(devices.app, name="device")

_ALARM_STATUS = 4


@app.command("init")
def init(system: System = None) -> None:
    """Prepare the storage systems of the settings; what is prepared already stays as it is."""
    for name, directory in create_storage(context.chosen(), system):
        out.print(f"{name} is ready; its records are in {directory}.", soft_wrap=True)


@app.command("status")
def status(
    json: Json = False,
    check: Annotated[
        bool,
        typer.Option("--check", help=f"Exit with {_ALARM_STATUS} when a threshold was passed."),
    ] = False,
    system: System = None,
) -> None:
    """Show how full the pools are, what thin LUNs promise, what needs attention."""
    systems = systems_of(engine(system))
    capacities = [one.capacity() for one in systems]
    alarms = {one.name: one.alarms() for one in systems}
    if json:
        as_json(
            [
                {
                    "storage": one.name,
                    "capacity": capacity,
                    "used_share": round(capacity.used_share, 4),
                    "overcommit_ratio": round(capacity.overcommit_ratio, 4),
                    "capabilities": one.capabilities,
                    "alarms": alarms[one.name],
                }
                for one, capacity in zip(systems, capacities, strict=True)
            ]
        )
    else:
        table(
            [
                "storage",
                ">size",
                ">used",
                ">free",
                ">promised",
                ">over-commit",
                "~reached by",
                "changes",
            ],
            [
                (
                    one.name,
                    size(capacity.total_bytes),
                    f"{size(capacity.total_bytes - capacity.free_bytes)} "
                    f"({capacity.used_share:.0%})",
                    size(capacity.free_bytes),
                    size(capacity.provisioned_bytes),
                    f"{capacity.overcommit_ratio:.2f}",
                    ", ".join(sorted(one.capabilities.protocols)) or "nobody",
                    one.capabilities.changed_extents,
                )
                for one, capacity in zip(systems, capacities, strict=True)
            ],
        )
        for name, found in alarms.items():
            for alarm in found:
                out.print(f"{alarm.level.upper()}: {name}: {alarm.text}.", soft_wrap=True)
    if check and any(alarms.values()):
        raise typer.Exit(_ALARM_STATUS)


@app.command("durability")
def durability(json: Json = False, system: System = None) -> None:
    """Say when a write counts as written, what a crash then loses, and what safety costs here.

    Measured on the pool, which takes seconds. Change it by `durability` in the settings.
    """
    found = engine(system).durability_choices()
    if json:
        as_json(list(found))
        return
    table(
        [
            "durability",
            "~a write is acknowledged when",
            "~a crash of this host loses",
            ">4 KiB writes a second",
        ],
        [
            (
                f"{choice.name} (chosen)" if choice.chosen else choice.name,
                choice.acknowledged_when,
                choice.crash_loses,
                f"{choice.writes_per_second:,.0f}",
            )
            for choice in found
        ],
    )


@app.command("list")
def list_luns(json: Json = False) -> None:
    """List LUN groups and LUNs, with their identity and who sees them where."""
    whole = engine()
    groups, shown = whole.groups(), whole.presentations()
    if json:
        as_json({"groups": groups, "presentations": shown})
        return
    seen = {(item.group, item.lun): item for item in shown}
    rows = []
    for group in groups:
        kind = group.name
        if group.clone_of:
            kind += f" ({'read-only ' if group.read_only else ''}clone of {group.clone_of})"
        if not group.luns:
            rows.append((kind, "-", "-", "-", "-", "-"))
        for lun in group.luns:
            item = seen.get((group.name, lun.name))
            portals = [f"{portal.address}:{portal.port}" for portal in item.portals] if item else []
            rows.append(
                (
                    kind,
                    f"{lun.name} (lost)" if lun.lost else lun.name,
                    size(lun.size_bytes),
                    lun.naa,
                    ", ".join(portals) or "-",
                    ", ".join(item.initiators) if item else "nobody",
                )
            )
    table(["~group", "LUN", ">size", "NAA", "~portals", "~presented to"], rows)


@app.command("present")
def present(
    lun: Lun,
    initiators: Annotated[
        list[str], typer.Argument(help="IQNs, or naa. and a WWPN: these and no others.")
    ],
) -> None:
    """Let exactly these initiators reach a LUN; sessions of others end."""
    shown = engine().present(lun.group, lun.name, initiators)
    for portal in shown.portals:
        out.print(
            f"{lun} is LUN {portal.lun_number} of {portal.target} at "
            f"{portal.address}:{portal.port}.",
            soft_wrap=True,
        )


@app.command("withdraw")
def withdraw(lun: Lun) -> None:
    """End all access to a LUN. Unmount and detach it on its hosts first, or they lose their way."""
    engine().withdraw(lun.group, lun.name)
    out.print(f"Nobody reaches {lun} now.")


@app.command("changes")
def changes(
    lun: Lun,
    older: Annotated[str, typer.Argument(help="The earlier snapshot.")],
    newer: Annotated[str, typer.Argument(help="The later snapshot.")],
    json: Json = False,
) -> None:
    """Say which ranges of a LUN may differ between two snapshots of its group."""
    found = list(engine().changed_extents(lun.group, lun.name, older, newer))
    if json:
        as_json([{"offset": each.offset, "length": each.length} for each in found])
        return
    out.print(f"{size(total_bytes(found))} in {len(found)} ranges of {lun} may differ.")


@app.command("reconcile")
def reconcile(json: Json = False) -> None:
    """Bring the pool in line with its records after a crash, and serve what is presented."""
    done = engine().reconcile()
    if json:
        as_json(list(done))
    else:
        out.print("\n".join(done) if done else "All is as recorded.", soft_wrap=True)


@app.command("stop")
def stop(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, system: System = None
) -> None:
    """End what serves LUNs on this machine, to unmount the pool; `reconcile` starts it again.

    Hosts that use a LUN lose it until then.
    """
    chosen = engine(system)
    shown = len(chosen.presentations())
    ask(f"Take {shown} LUNs away from the hosts that see them?", yes=yes or not shown)
    chosen.stop()
    out.print(f"{chosen.name} serves nothing on this machine until it is reconciled.")
