"""Snapshots of LUN groups, and clones of them."""

import time
from datetime import datetime
from json import loads
from typing import Annotated

import typer

from atoll.cli.output import as_json, err, moment, out, seconds, size, table
from atoll.cli.storage.arguments import Group, Json, Snapshot, ask, engine, expiry

snapshot_app = typer.Typer(help="Snapshots of a whole group.", no_args_is_help=True)
clone_app = typer.Typer(
    help="Copies of a snapshot in no time, as groups of their own.", no_args_is_help=True
)


@snapshot_app.command("take")
def take_snapshot(
    group: Group,
    name: Snapshot,
    keep: Annotated[
        str | None, typer.Option(help="How long it is needed, like 12h, 7d or 4w; else for ever.")
    ] = None,
) -> None:
    """Snapshot all LUNs of a group at one instant. Guests are not held: `atoll backup` does that."""
    taken = engine().snapshot_group(group, name, expiry(keep))
    out.print(f"{group}@{name} holds {len(taken.lun_sizes)} LUNs as of {moment(taken.started_at)}.")


@snapshot_app.command("list")
def list_snapshots(group: Group, json: Json = False) -> None:
    """List a group's snapshots, oldest first."""
    found = engine().snapshots(group)
    if json:
        as_json(list(found))
        return
    table(
        ["snapshot", "taken", ">LUNs", ">size", ">writes held back", "kept until"],
        [
            (
                item.name,
                moment(item.started_at),
                str(len(item.lun_sizes)),
                size(sum(each for _, each in item.lun_sizes)),
                seconds(item.pause_seconds),
                "for ever" if item.expires_at is None else moment(item.expires_at),
            )
            for item in found
        ],
    )


@snapshot_app.command("show")
def show_snapshot(group: Group, name: Snapshot, json: Json = False) -> None:
    """Show whose disks a snapshot holds, and how far each VM in it may be trusted."""
    words = engine().annotation(group, name)
    if words is None:
        err.print(f"Nothing is written on {group}@{name}.")
        raise typer.Exit(1)
    if json:
        out.print(words, markup=False, highlight=False, soft_wrap=True)
        return
    try:
        vms = [
            (vm["name"], vm["consistency"], "; ".join(vm["reasons"]) or "-")
            for vm in loads(words)["vms"]
        ]
    except (ValueError, KeyError, TypeError):
        # Somebody else's words.
        out.print(words, markup=False, highlight=False)
        return
    table(["VM", "consistency", "~why not more"], vms)


@snapshot_app.command("keep")
def keep_snapshot(
    group: Group,
    name: Snapshot,
    keep: Annotated[str, typer.Argument(metavar="TIME", help="Like 12h, 7d, 4w, or forever.")],
) -> None:
    """Say how long from now on a snapshot is needed."""
    kept = engine().keep_snapshot(group, name, expiry(keep))
    until = "for ever" if kept.expires_at is None else f"until {moment(kept.expires_at)}"
    out.print(f"{group}@{name} is kept {until}.")


@snapshot_app.command("expire")
def expire_snapshots(json: Json = False) -> None:
    """Delete every snapshot whose time is over; one with a clone stays until that is gone."""
    gone = engine().expire_snapshots()
    if json:
        as_json(list(gone))
    else:
        out.print("\n".join(f"Deleted {name}." for name in gone) or "No snapshot's time is over.")


@snapshot_app.command("delete")
def delete_snapshot(group: Group, name: Snapshot) -> None:
    """Remove a snapshot; refused while a clone of it exists."""
    engine().delete_snapshot(group, name)
    out.print(f"There is no snapshot {group}@{name} any more.")


@snapshot_app.command("revert")
def revert_group(
    group: Group,
    name: Snapshot,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Keep no snapshot of how it is now.")
    ] = False,
) -> None:
    """Make all LUNs of a group what they were in a snapshot; refused while one is presented.

    How they are now is kept as a snapshot first, so that you can change your mind.
    """
    ask(f"Make every LUN of {group} what it was in {name}?", yes=yes)
    storage = engine()
    kept = ""
    if not discard:
        kept = f"before-revert-{datetime.fromtimestamp(time.time()):%Y%m%d-%H%M%S}"
        storage.snapshot_group(group, kept)
    try:
        storage.revert_group(group, name)
    except Exception:
        if kept:
            storage.delete_snapshot(group, kept)
        raise
    out.print(f"{group} is what it was in {name}.")
    if kept:
        out.print(f"What it was until now is {group}@{kept}; delete that when you are sure.")


@clone_app.command("create")
def create_clone(
    group: Group,
    name: Snapshot,
    clone: Annotated[str, typer.Argument(help="What the clone is called, as a LUN group.")],
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Initiators can only read it.")
    ] = False,
) -> None:
    """Make a copy of a snapshot in no time: a group whose LUNs have identities of their own."""
    made = engine().clone(group, name, clone, read_only=read_only)
    out.print(f"{clone} has {len(made.luns)} LUNs and is a clone of {group}@{name}.")


@clone_app.command("delete")
def delete_clone(clone: Annotated[str, typer.Argument(help="The clone.")]) -> None:
    """Withdraw a clone and remove it with all that was written to it."""
    engine().delete_clone(clone)
    out.print(f"There is no clone {clone} any more.")
