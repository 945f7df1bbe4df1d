"""`atoll lab`: a whole site on this machine, to try and to test."""

from typing import Annotated

import typer

from atoll.cli.output import as_json, err, out, table
from atoll_lab.down import take_down
from atoll_lab.places import places
from atoll_lab.status import lab_status
from atoll_lab.up import bring_up

app = typer.Typer(
    help="A site in a box: storage, VMFS, real guests, a simulated vCenter.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The lab's name; several labs run side by side.")]


@app.command("up")
def up(
    name: Name = "lab",
    apart: Annotated[
        bool, typer.Option("--apart", help="In a new lab: each LUN in a LUN group of its own.")
    ] = False,
) -> None:
    """Stand up a site, or start again what of it has stopped."""
    where = places(name)
    bring_up(where, lambda text: err.print(f"lab {name}: {text}", style="dim"), apart=apart)
    out.print(f"Lab {name} is up. To work with it:")
    out.print(f"  export ATOLL_CONFIG={where.settings}", soft_wrap=True)


@app.command("status")
def status(
    name: Name = "lab",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what of a lab is running."""
    rows = lab_status(places(name))
    if json:
        as_json(rows)
        return
    table(["part", "state", "~detail"], [(row.part, row.state, row.detail) for row in rows])


@app.command("down")
def down(name: Name = "lab") -> None:
    """Stop a lab and remove everything it made, except the cache of built guests."""
    take_down(places(name))
    out.print(f"Lab {name} is gone.")
