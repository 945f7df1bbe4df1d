"""`atoll storage`: the pool, its LUNs and LUN groups, who sees them, and their snapshots."""

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, moment, out, seconds, size, table
from atoll.model.extents import total_bytes
from atoll.wiring import create_storage

app = typer.Typer(help="Provision LUNs and look at the pool.", no_args_is_help=True)
group_app = typer.Typer(help="LUN groups, which are snapshot as one.", no_args_is_help=True)
lun_app = typer.Typer(help="LUNs of a group.", no_args_is_help=True)
snapshot_app = typer.Typer(help="Snapshots of a whole group.", no_args_is_help=True)
app.add_typer(group_app, name="group")
app.add_typer(lun_app, name="lun")
app.add_typer(snapshot_app, name="snapshot")

_SIZE = re.compile(r"(\d+)\s*([KMGTP]?)(?:iB|B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Group = Annotated[str, typer.Argument(help="The LUN group.")]
Snapshot = Annotated[str, typer.Argument(help="The snapshot's name.")]


@dataclass(frozen=True, slots=True)
class LunAddress:
    """A LUN as the command line names it: `GROUP/LUN`."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


def _lun(text: str) -> LunAddress:
    group, _, name = text.partition("/")
    if not group or not name:
        raise typer.BadParameter(f"{text} is not GROUP/LUN")
    return LunAddress(group, name)


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text} is no size; write it like 500G or 2T")
    return int(found[1]) << 10 * _POWERS[found[2].upper()]


Lun = Annotated[LunAddress, typer.Argument(parser=_lun, metavar="GROUP/LUN")]
Size = Annotated[int, typer.Argument(parser=_bytes, metavar="SIZE", help="For example 500G or 2T.")]


@app.command("init")
def init() -> None:
    """Make the directory the settings name a pool; one that is a pool already stays as it is."""
    name, root = create_storage(context.chosen())
    out.print(f"{root} is the pool {name}.")


@app.command("status")
def status(json: Json = False) -> None:
    """Show how full the pool is and how much its thin LUNs promise."""
    engine = context.site().engine()
    capacity = engine.capacity()
    if json:
        as_json({"storage": engine.name, "capacity": capacity})
        return
    used = capacity.total_bytes - capacity.free_bytes
    table(
        ["storage", ">size", ">used", ">free", ">promised to LUNs", ">over-commit"],
        [
            (
                engine.name,
                size(capacity.total_bytes),
                f"{size(used)} ({used / capacity.total_bytes:.0%})",
                size(capacity.free_bytes),
                size(capacity.provisioned_bytes),
                f"{capacity.provisioned_bytes / capacity.total_bytes:.2f}",
            )
        ],
    )


@app.command("list")
def list_luns(json: Json = False) -> None:
    """List LUN groups and LUNs, with their identity and who sees them where."""
    engine = context.site().engine()
    groups, shown = engine.groups(), engine.presentations()
    if json:
        as_json({"groups": groups, "presentations": shown})
        return
    seen = {(item.group, item.lun): item for item in shown}
    rows = []
    for group in groups:
        kind = f"{group.name} (clone of {group.clone_of})" if group.clone_of else group.name
        if not group.luns:
            rows.append((kind, "-", "-", "-", "-", "-"))
        for lun in group.luns:
            item = seen.get((group.name, lun.name))
            portals = [f"{portal.address}:{portal.port}" for portal in item.portals] if item else []
            rows.append(
                (
                    kind,
                    lun.name,
                    size(lun.size_bytes),
                    lun.naa,
                    ", ".join(portals) or "-",
                    ", ".join(item.initiators) if item else "nobody",
                )
            )
    table(["group", "LUN", ">size", "NAA", "portal", "~presented to"], rows)


@app.command("present")
def present(
    lun: Lun,
    initiators: Annotated[list[str], typer.Argument(help="IQNs: these and no others.")],
) -> None:
    """Let exactly these initiators reach a LUN; sessions of others end."""
    shown = context.site().engine().present(lun.group, lun.name, initiators)
    for portal in shown.portals:
        out.print(
            f"{lun} is LUN {portal.lun_number} of {portal.target} at "
            f"{portal.address}:{portal.port}.",
            soft_wrap=True,
        )


@app.command("withdraw")
def withdraw(lun: Lun) -> None:
    """End all access to a LUN. Unmount and detach it on its hosts first, or they lose their way."""
    context.site().engine().withdraw(lun.group, lun.name)
    out.print(f"Nobody reaches {lun} now.")


@app.command("changes")
def changes(
    lun: Lun,
    older: Annotated[str, typer.Argument(help="The earlier snapshot.")],
    newer: Annotated[str, typer.Argument(help="The later snapshot.")],
    json: Json = False,
) -> None:
    """Say which ranges of a LUN may differ between two snapshots of its group."""
    found = list(context.site().engine().changed_extents(lun.group, lun.name, older, newer))
    if json:
        as_json([{"offset": each.offset, "length": each.length} for each in found])
        return
    out.print(f"{size(total_bytes(found))} in {len(found)} ranges of {lun} may differ.")


@app.command("reconcile")
def reconcile(json: Json = False) -> None:
    """Bring the pool in line with its records after a crash, and serve what is presented."""
    done = context.site().engine().reconcile()
    if json:
        as_json(list(done))
    else:
        out.print("\n".join(done) if done else "All is as recorded.")


@group_app.command("create")
def create_group(group: Group) -> None:
    """Make an empty LUN group; one that exists stays as it is."""
    context.site().engine().create_group(group)
    out.print(f"LUN group {group} is there.")


@group_app.command("delete")
def delete_group(group: Group) -> None:
    """Remove a group and its LUNs; refused while one is presented or a snapshot exists."""
    context.site().engine().delete_group(group)
    out.print(f"There is no LUN group {group} any more.")


@lun_app.command("create")
def create_lun(lun: Lun, size_bytes: Size) -> None:
    """Make a thin LUN."""
    made = context.site().engine().create_lun(lun.group, lun.name, size_bytes)
    out.print(f"{lun} has {size(made.size_bytes)} and is {made.naa}.")


@lun_app.command("grow")
def grow_lun(lun: Lun, size_bytes: Size) -> None:
    """Make a LUN larger while it is in use; rescan its hosts afterwards."""
    grown = context.site().engine().grow_lun(lun.group, lun.name, size_bytes)
    out.print(f"{lun} has {size(grown.size_bytes)} now; rescan its hosts.")


@lun_app.command("delete")
def delete_lun(lun: Lun) -> None:
    """Remove a LUN; refused while it is presented. Snapshots keep what they hold of it."""
    context.site().engine().delete_lun(lun.group, lun.name)
    out.print(f"There is no LUN {lun} any more.")


@snapshot_app.command("take")
def take_snapshot(group: Group, name: Snapshot) -> None:
    """Snapshot all LUNs of a group at one instant. Guests are not held: `atoll backup` does that."""
    taken = context.site().engine().snapshot_group(group, name)
    out.print(f"{group}@{name} holds {len(taken.lun_sizes)} LUNs as of {moment(taken.started_at)}.")


@snapshot_app.command("list")
def list_snapshots(group: Group, json: Json = False) -> None:
    """List a group's snapshots, oldest first."""
    found = context.site().engine().snapshots(group)
    if json:
        as_json(list(found))
        return
    table(
        ["snapshot", "taken", ">LUNs", ">writes held back"],
        [
            (
                item.name,
                moment(item.started_at),
                str(len(item.lun_sizes)),
                seconds(item.pause_seconds),
            )
            for item in found
        ],
    )


@snapshot_app.command("delete")
def delete_snapshot(group: Group, name: Snapshot) -> None:
    """Remove a snapshot; refused while a clone of it exists."""
    context.site().engine().delete_snapshot(group, name)
    out.print(f"There is no snapshot {group}@{name} any more.")
