"""`atoll repo`: make a repository and see what it holds."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, out, size, table
from atoll.wiring import create_repository

app = typer.Typer(help="Make and look at the repository.", no_args_is_help=True)


@app.command("init")
def init() -> None:
    """Make the repository the settings name, and its key file if there is none."""
    with create_repository(context.chosen()) as repository:
        out.print(f"Made {repository.stats().location}.")
    out.print("Keep a copy of the key file elsewhere: without it nothing can be restored.")


@app.command("stats")
def stats(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show how much is kept and what it takes."""
    found = context.site().repository().stats()
    if json:
        as_json(found)
        return
    table(
        ["repository", ">points", ">their disks", ">chunks", ">stored", ">ratio"],
        [
            (
                found.location,
                str(found.points),
                size(found.logical_bytes),
                str(found.chunks),
                size(found.stored_bytes),
                f"{found.logical_bytes / found.stored_bytes:.1f}" if found.stored_bytes else "-",
            )
        ],
    )


@app.command("rebuild-index")
def rebuild_index() -> None:
    """Write the index anew from the packs, after `atoll verify` found it damaged."""
    written = context.site().repository().rebuild_index()
    out.print(f"Wrote {len(written)} index segments.")
