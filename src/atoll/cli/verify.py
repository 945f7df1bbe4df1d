"""`atoll verify` and `atoll repo repair`: read the repository back, name what is damaged, and mend it."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, moment, out
from atoll.cli.progress import LiveProgress
from atoll.model.errors import ConfigurationError, RepositoryDamagedError
from atoll.repository.repository import Repository
from atoll.repository.verify import VerifyReport
from atoll.service import checking
from atoll.wiring import open_copy

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verify(
    days: Annotated[
        int | None,
        typer.Option(
            "--days",
            min=1,
            help="Read only today's share, so that all is read in so many days; longest unread first.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a verify was cut short.")
    ] = False,
    json: Json = False,
) -> None:
    """Read the repository back and check every byte; damage names the restore points it touches."""
    if days is not None and resume:
        raise ConfigurationError(
            "--days and --resume do not go together: a share always goes on where the last one ended."
        )
    site = context.site()
    repository = site.repository()
    with LiveProgress() as progress:
        checked = checking.check(
            site,
            lambda total: progress.stage("", "verify", total),
            lambda done: progress.advance("", done),
            days=days,
            resume=resume,
        )
        progress.stage("", "done")
    report = checked.report
    if json:
        as_json({**asdict(report), "all_since": checked.all_since})
    else:
        _show(repository, report)
        if not report.damaged:
            out.print(f"All {report.checked_chunks} chunks that were read are what was written.")
        if days is not None:
            since = (
                f"; every pack was found whole since {moment(checked.all_since)}"
                if checked.all_since
                else "; not every pack has been read yet"
            )
            out.print(f"Read {report.checked_packs} of {report.packs} packs{since}.")
    _refuse(report, "`atoll repo repair` mends what can be mended")


def repair(
    other: Annotated[
        str | None,
        typer.Option(
            "--from", help="Location of a copy of this repository, to take whole bytes from."
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Read everything first, not only what `atoll verify` found damaged."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Mend what `atoll verify` found: from second copies, from another repository, or by the next backup."""
    site = context.site()
    repository = site.repository()
    with ExitStack() as stack, LiveProgress() as progress:
        copy = stack.enter_context(open_copy(context.chosen(), other)) if other else None
        progress.stage("", "repair")
        report = checking.mend(
            site, copy, lambda done: progress.advance("", done), everything=everything
        )
        progress.stage("", "done")
    if json:
        as_json(report)
    else:
        for name in report.healed:
            out.print(f"{name} is as it was written again.")
        for name in report.rewritten:
            out.print(f"What is whole of {name} is in another pack now.")
        for name in report.left:
            err.print(f"{name} cannot be mended; name a copy with --from.", style="red")
        if report.lost_chunks:
            err.print(
                f"{report.lost_chunks} chunks are lost; the next backup of the same disks stores again "
                "what they still hold of it.",
                style="red",
            )
        _show(repository, report.remaining)
        if not (report.healed or report.rewritten or report.remaining.damaged):
            out.print("Nothing that was read is damaged.")
    _refuse(report.remaining, "back up the VMs named above, or name a copy with --from")


def _show(repository: Repository, report: VerifyReport) -> None:
    names = {point.id: f"{point.vm}@{point.run}" for point in repository.points()}
    for damage in report.damaged:
        touched = ", ".join(names.get(each, each) for each in damage.points) or "no restore point"
        err.print(f"{damage.object}: {damage.detail}; touches {touched}", style="red")


def _refuse(report: VerifyReport, advice: str) -> None:
    if report.damaged:
        raise RepositoryDamagedError(
            f"{len(report.damaged)} objects of the repository are damaged; restore points not named "
            f"above are whole; {advice}."
        )
