"""`atoll verify` and `atoll repo repair`: read the repository back, name what is damaged, and mend it."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, moment, out, printable, size, table
from atoll.cli.progress import LiveProgress
from atoll.model.errors import ConfigurationError, RepositoryDamagedError
from atoll.model.extents import Extent, total_bytes
from atoll.repository.verify import VerifyReport
from atoll.service import checking
from atoll.service.site import Site
from atoll.wiring import open_copy

_FILES_SHOWN = 20
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
    with LiveProgress("repository") as progress:
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
        files = checking.touched_files(site, report)
        as_json({**asdict(report), "all_since": checked.all_since, "files": files})
    else:
        _show(site, report)
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
            "--from", help="A copy of this repository, by name or place, to take whole bytes from."
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
    with ExitStack() as stack, LiveProgress("repository") as progress:
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
        _show(site, report.remaining)
        if not (report.healed or report.rewritten or report.remaining.damaged):
            out.print("Nothing that was read is damaged.")
    _refuse(report.remaining, "back up the VMs named above, or name a copy with --from")


def _show(site: Site, report: VerifyReport) -> None:
    points = {point.id: point for point in site.repository().points()}

    def name(point: str) -> str:
        return f"{points[point].vm}@{points[point].run}" if point in points else point

    for damage in report.damaged:
        touched = ", ".join(map(name, damage.points)) or "no restore point"
        err.print(f"{damage.object}: {damage.detail}; touches {touched}", style="red")
    lost: dict[tuple[str, str], list[Extent]] = {}
    for damage in report.damaged:
        for each in damage.ranges:
            lost.setdefault((each.point, each.disk), []).append(each.extent)
    if not lost:
        return
    table(
        ["restore point", "disk", ">lost", "first at byte"],
        [
            (name(point), disk, size(total_bytes(extents)), str(min(extents).offset))
            for (point, disk), extents in sorted(lost.items())
        ],
    )
    for point, found in checking.touched_files(site, report).items():
        for file in found.files[:_FILES_SHOWN]:
            err.print(f"{name(point)}: lost bytes in {printable(file)}", style="red")
        if len(found.files) > _FILES_SHOWN:
            err.print(f"{name(point)}: and in {len(found.files) - _FILES_SHOWN} more files.")
        for why in found.unread:
            err.print(f"{name(point)}: {printable(why)}", style="red")
        if not found.files and not found.unread:
            err.print(f"{name(point)}: no file that Atoll can read lies on them.")


def _refuse(report: VerifyReport, advice: str) -> None:
    if report.damaged:
        raise RepositoryDamagedError(
            f"{len(report.damaged)} objects of the repository are damaged; restore points not named "
            f"above are whole; {advice}."
        )
