"""`atoll hold` and `atoll release`: restore points that must stay, whatever the rules say."""

import time
from datetime import datetime, timedelta
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import moment, out
from atoll.cli.storage.arguments import ask
from atoll.model.errors import UnknownPointError
from atoll.model.retention import PointHold


def hold(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    reason: Annotated[str, typer.Option(help="Why it must stay; shown with the point.")],
    until: Annotated[
        str | None,
        typer.Option(help="A day, 2027-01-31, to its end; else until it is released."),
    ] = None,
) -> None:
    """Have a restore point stay: neither retention nor `atoll repo forget` removes it."""
    end = None if until is None else _end_of(until)
    if not reason.strip():
        raise typer.BadParameter("say why the point must stay", param_hint="--reason")
    repository = context.site().repository()
    point = repository.find(reference)
    placed = repository.hold(point.id, reason.strip(), end)
    out.print(f"{point.vm}@{point.run} is on hold {ends(placed)}.")


def release(
    reference: Annotated[
        str | None, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")
    ] = None,
    which: Annotated[
        str | None,
        typer.Option(
            "--hold", help="Which hold, where the point has several; `atoll point` shows."
        ),
    ] = None,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="All holds that cannot be read, of whatever point.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask about damaged holds.")] = False,
) -> None:
    """Let go of a hold. The point then goes when the rules say so."""
    if damaged == bool(reference):
        raise typer.BadParameter("name a restore point, or give --damaged")
    repository = context.site().repository()
    holds = repository.holds()
    if reference is None:
        if holds.damaged:
            ask(f"Release {', '.join(holds.damaged)}, without knowing what they hold?", yes=yes)
        for name in holds.damaged:
            repository.release(name)
        out.print(f"Released {len(holds.damaged)} holds that could not be read.")
        return
    point = repository.find(reference)
    found = [
        each for each in holds.found if each.point == point.id and each.name.startswith(which or "")
    ]
    if not found:
        raise UnknownPointError(
            f"{point.vm}@{point.run} has no such hold; `atoll point` shows all."
        )
    if len(found) > 1:
        raise typer.BadParameter(
            f"{point.vm}@{point.run} has {len(found)} holds ({', '.join(map(_short, found))}); "
            "choose one with --hold"
        )
    repository.release(found[0].name)
    out.print(f"Released the hold on {point.vm}@{point.run} ({found[0].reason}).")


def described(hold: PointHold) -> str:
    """A hold in a line."""
    over = "" if hold.in_force(time.time()) else ", which is over"
    return (
        f"Hold {_short(hold)} {ends(hold)}{over}, set {moment(hold.placed_at)} by {hold.who}: "
        f"{hold.reason}"
    )


def ends(hold: PointHold) -> str:
    """Until when it lasts."""
    return "until it is released" if hold.until is None else f"until {moment(hold.until)}"


def _short(hold: PointHold) -> str:
    return hold.name[:8]


def _end_of(day: str) -> float:
    """The end of a day in local time, seconds since the epoch."""
    try:
        end = (datetime.strptime(day, "%Y-%m-%d") + timedelta(days=1)).timestamp()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{day} is no day; write it like 2027-01-31", param_hint="--until"
        ) from error
    if end <= time.time():
        raise typer.BadParameter(f"{day} is over", param_hint="--until")
    return end
