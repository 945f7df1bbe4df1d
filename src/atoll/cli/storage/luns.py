"""LUN groups and their LUNs."""

from typing import Annotated

import typer

from atoll.cli.output import out, size
from atoll.cli.storage.arguments import Force, Group, Lun, Size, System, engine

group_app = typer.Typer(help="LUN groups, which are snapshot as one.", no_args_is_help=True)
lun_app = typer.Typer(help="LUNs of a group.", no_args_is_help=True)


@group_app.command("create")
def create_group(group: Group, system: System = None) -> None:
    """Make an empty LUN group; one that exists stays as it is.

    Of several storage systems the one with the most room gets it, unless you name one.
    """
    engine(system).create_group(group)
    out.print(f"LUN group {group} is there.")


@group_app.command("delete")
def delete_group(group: Group, force: Force = False) -> None:
    """Remove a group and its LUNs; refused while one is presented or a snapshot exists.

    With --force its LUNs are withdrawn and its snapshots deleted first.
    """
    engine().delete_group(group, force=force)
    out.print(f"There is no LUN group {group} any more.")


@lun_app.command("create")
def create_lun(lun: Lun, size_bytes: Size) -> None:
    """Make a thin LUN."""
    made = engine().create_lun(lun.group, lun.name, size_bytes)
    out.print(f"{lun} has {size(made.size_bytes)} and is {made.naa}.")


@lun_app.command("grow")
def grow_lun(lun: Lun, size_bytes: Size) -> None:
    """Make a LUN larger while it is in use; rescan its hosts afterwards."""
    grown = engine().grow_lun(lun.group, lun.name, size_bytes)
    out.print(f"{lun} has {size(grown.size_bytes)} now; rescan its hosts.")


@lun_app.command("rename")
def rename_lun(lun: Lun, name: Annotated[str, typer.Argument(help="Its new name.")]) -> None:
    """Give a LUN another name. Hosts notice nothing: identity and target stay."""
    renamed = engine().rename_lun(lun.group, lun.name, name)
    out.print(f"{lun} is {renamed.group}/{renamed.name} now.")


@lun_app.command("move")
def move_lun(
    lun: Lun, to: Annotated[str, typer.Argument(metavar="GROUP", help="The group it goes to.")]
) -> None:
    """Put a LUN into another group, with its data and identity; refused while it is presented."""
    engine().move_lun(lun.group, lun.name, to)
    out.print(f"{lun} is {to}/{lun.name} now.")


@lun_app.command("delete")
def delete_lun(lun: Lun, force: Force = False) -> None:
    """Remove a LUN; refused while it is presented or a snapshot of its group holds it.

    With --force it is withdrawn first; snapshots keep what they hold of it.
    """
    engine().delete_lun(lun.group, lun.name, force=force)
    out.print(f"There is no LUN {lun} any more.")
