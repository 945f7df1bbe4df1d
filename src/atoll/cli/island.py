"""`atoll island`: a run's VMs, shown to backup software on a host of their own."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, moment, out, table
from atoll.island.placing import Refreshed
from atoll.service.island import clear_island, island_history, island_status, refresh_island

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


@app.command("history")
def history(
    vm: Annotated[
        str | None, typer.Argument(help="Only of this VM: a name it had, or its UUID.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what became of the placeholder VMs, oldest first."""
    found = island_history(context.site())
    uuids = {event.vm for event in found if vm in (event.vm, event.name, event.was)}
    chosen = [event for event in found if vm is None or event.vm in uuids]
    if json:
        as_json(chosen)
        return
    table(
        ["when", "placeholder", "what", "run", "~id"],
        [
            (
                moment(event.at),
                event.name,
                f"{event.what} (was {event.was})" if event.was else event.what,
                event.run or "-",
                event.moref,
            )
            for event in chosen
        ],
    )


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
