"""`atoll repo prune` and `atoll repo forget`: which restore points go, and their space."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, moment, out, size, table
from atoll.cli.progress import LiveProgress
from atoll.cli.storage.arguments import ask
from atoll.model.errors import UnknownPointError
from atoll.model.points import RestorePoint
from atoll.model.retention import Retention, Verdict, Why
from atoll.repository.prune import WASTE, PrunePlan, PruneReport
from atoll.service import retention as service

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would go, and why the rest stays.")
    ] = False,
    json: Json = False,
) -> None:
    """Forget the restore points that [retention] lets go of, and give back what nobody needs."""
    site = context.site()
    with LiveProgress("repository") as progress:
        advance = _counting(progress)
        progress.stage("", "reach" if dry_run else "forget")
        if dry_run:
            found = service.preview(site, advance)
        else:

            def forgotten(_: Sequence[RestorePoint]) -> None:
                progress.stage("", "prune")

            done = service.prune(site, forgotten, advance)
        progress.stage("", "done")
    if dry_run:
        _show_preview(found, site.retention, json=json)
    else:
        _show_result(done, site.retention, json=json)


def forget(
    references: Annotated[
        list[str] | None, typer.Argument(help="VM@RUN, VM@latest or the start of a run.")
    ] = None,
    all_of: Annotated[
        str | None, typer.Option(help="All points of this VM, by name or instance UUID.")
    ] = None,
    even_newest: Annotated[
        bool, typer.Option("--even-newest", help="Also the newest point of a VM that is there.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Forget restore points by name. Their space comes back with the next `atoll repo prune`."""
    if bool(references) == bool(all_of):
        raise typer.BadParameter("name restore points, or a VM with --all-of")
    site = context.site()
    repository = site.repository()
    if all_of:
        points = [point for point in repository.points() if all_of in _names(point)]
        if not points:
            raise UnknownPointError(f"There is no restore point of {all_of}; list the points.")
    else:
        points = [repository.find(reference) for reference in references or ()]
    named = {point.id: f"{point.vm}@{point.run}" for point in points}
    ask(f"Forget {', '.join(named.values())} for ever?", yes=yes)
    gone = service.forget(site, named, even_newest=even_newest)
    if json:
        as_json([point.id for point in gone])
        return
    out.print(
        f"Forgot {_counted(len(gone), 'restore point')}. `atoll repo prune` gives back the space."
    )


def _names(point: RestorePoint) -> tuple[str, str]:
    return point.vm, point.instance_uuid


def _counting(progress: LiveProgress) -> Callable[[int], None]:
    return lambda done: progress.advance("", done)


def _show_preview(found: service.PrunePreview, retention: Retention, *, json: bool) -> None:
    if json:
        as_json(
            {
                "points": _as_json(found.verdicts),
                "damaged_holds": found.damaged_holds,
                "space": found.plan,
            }
        )
        return
    table(
        ["restore point", "taken", "consistency", "~verdict"],
        [
            (
                f"{verdict.point.vm}@{verdict.point.run}",
                moment(verdict.point.created_at),
                str(verdict.point.proof.consistency),
                "GOES" if verdict.goes else "stays: " + _why(verdict),
            )
            for verdict in found.verdicts
        ],
    )
    _tell(found.verdicts, found.damaged_holds, retention)
    going = sum(verdict.goes for verdict in found.verdicts)
    out.print(
        f"{_counted(going, 'restore point')} of {len(found.verdicts)} would go, and about "
        f"{size(_coming_back(found.plan))} of space come back.{_kept(found.plan)} Nothing was changed."
    )


def _show_result(done: service.PruneResult, retention: Retention, *, json: bool) -> None:
    if json:
        as_json(
            {
                "points": _as_json(done.verdicts),
                "damaged_holds": done.damaged_holds,
                "forgotten": [point.id for point in done.forgotten],
                "space": done.space,
            }
        )
        return
    _tell(done.verdicts, done.damaged_holds, retention)
    for point in done.forgotten:
        out.print(f"Forgot {point.vm}@{point.run}, taken {moment(point.created_at)}.")
    out.print(_space(done.space))


def _space(space: PruneReport) -> str:
    said = f"{size(space.freed_bytes)} of space came back."
    if space.marked_bytes:
        said += (
            f" {size(space.marked_bytes)} more can go with the next prune, once these have ended: "
            f"{'; '.join(space.waiting_for)}."
        )
    return said + _kept(space)


def _kept(space: PrunePlan | PruneReport) -> str:
    """What is wasted and stays so, and why."""
    if not space.kept_bytes:
        return ""
    return (
        f" {size(space.kept_bytes)} that nobody needs stay in packs that are needed for the most part: "
        f"one is written anew once more than {WASTE:.0%} of it is wasted."
    )


def _coming_back(plan: PrunePlan) -> int:
    return plan.unused_bytes + plan.wasted_bytes


def _tell(verdicts: Sequence[Verdict], damaged_holds: Sequence[str], retention: Retention) -> None:
    """What an admin should know besides."""
    if retention.keep.everything and not retention.rules:
        out.print("The settings have no rule in [retention], so no restore point goes by itself.")
    for name in damaged_holds:
        err.print(
            f"{name} cannot be read and may hold any restore point, so none goes; restore that "
            "object from a copy, or `atoll release --damaged`.",
            style="red",
        )
    future = [
        f"{verdict.point.vm}@{verdict.point.run}"
        for verdict in verdicts
        if any(reason.why is Why.FUTURE for reason in verdict.reasons)
    ]
    if future:
        err.print(
            f"Dated in the future, so they stay and count for no rule: {', '.join(future)}; check "
            "the clocks of the storage and of this machine.",
            style="yellow",
        )


def _why(verdict: Verdict) -> str:
    return ", ".join(str(reason) for reason in verdict.reasons)


def _as_json(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    return [
        {
            "id": verdict.point.id,
            "vm": verdict.point.vm,
            "instance_uuid": verdict.point.instance_uuid,
            "run": verdict.point.run,
            "created_at": verdict.point.created_at,
            "consistency": verdict.point.proof.consistency,
            "goes": verdict.goes,
            "reasons": verdict.reasons,
        }
        for verdict in verdicts
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
