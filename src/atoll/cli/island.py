"""`atoll island`: a run's VMs, shown to backup software on a host of their own."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out, table
from atoll.island.placing import Refreshed
from atoll.service.island import clear_island, island_status, refresh_island

app = typer.Typer(
    help="Show runs to backup software on the island's ESX host.", no_args_is_help=True
)

KEPT = 5
"""Exit status when something stays as it was, because a job still reads it or it failed."""


@app.command("refresh")
def refresh(
    run: Annotated[
        str, typer.Argument(help="A run, the beginning of its name, or latest.")
    ] = "latest",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let the placeholder VMs show a run's disks, and take older runs away.

    A placeholder that a backup job still reads keeps its run until the next refresh; exit status 5
    says that there was one, or another thing that stays as it was.
    """
    _tell(refresh_island(context.site(), run), json=json)


@app.command("clear")
def clear(
    run: Annotated[str | None, typer.Argument(help="Only this run.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take runs off the island; the placeholder VMs stay, without disks."""
    _tell(clear_island(context.site(), run), json=json)


@app.command("status")
def status(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the placeholder VMs and what they show."""
    found = island_status(context.site())
    if json:
        as_json(found)
        return
    table(
        ["placeholder", "run", ">disks", "in use", "~first disk"],
        [
            (
                each.name,
                each.run or "-",
                str(len(each.disks)),
                "yes" if each.in_use else "-",
                next(iter(each.disks.values()), "-"),
            )
            for each in found.placeholders
        ],
    )
    out.print(f"Runs on the island: {', '.join(found.runs) or 'none'}")


def _tell(done: Refreshed, *, json: bool) -> None:
    if json:
        as_json(done)
    else:
        for placeholder in done.shown:
            out.print(f"{placeholder.name} shows run {placeholder.run}.")
        for name in done.removed:
            out.print(f"Removed placeholder {name}, whose VM is gone.")
        for run in done.retired:
            out.print(f"Took run {run} off the island.")
        for sentence in done.kept:
            err.print(sentence, style="yellow")
        if not (done.shown or done.removed or done.retired or done.kept):
            out.print("Nothing was on the island.")
    if done.kept:
        raise typer.Exit(KEPT)
