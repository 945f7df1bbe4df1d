"""`atoll repo copy`: bring second copies of the repository up to date."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, seconds, size, table
from atoll.cli.progress import LiveProgress
from atoll.model.errors import AtollError, ConfigurationError
from atoll.model.progress import Progress
from atoll.service.copying import CopyPlace, CopyReport, copy_repository, mirror_without_key
from atoll.wiring import copy_places, open_objects


def copy(
    names: Annotated[
        list[str] | None, typer.Argument(help="Copies of the settings; all if none is named.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Copy to this place instead of one of the settings.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="With --to: key of the repository that is there."),
    ] = None,
    without_key: Annotated[
        bool,
        typer.Option(
            "--without-key", help="Mirror without opening the repository; checks the form only."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy the repository to second places: what is missing there, and nothing is deleted.

    Into an empty place or a mirror objects are copied, into another repository restore points.
    """
    places = _places(names or [], to, key_file, without_key=without_key)
    copied = _copying(without_key=without_key)
    reports: list[CopyReport] = []
    problems: list[AtollError] = []
    with LiveProgress("repository") as progress:
        for place in places:
            progress.note("", f"Copying to {place.name}")
            try:
                reports.append(copied(place, progress))
            except AtollError as error:
                problems.append(error)
    if json:
        as_json(reports)
    else:
        _show(reports)
    for report in reports:
        try:
            report.raise_if_damaged()
        except AtollError as error:
            problems.append(error)
    for problem in problems[1:]:
        err.print(str(problem), style="red")
    if problems:
        raise problems[0]


def _places(
    names: Sequence[str], to: str | None, key_file: Path | None, *, without_key: bool
) -> Sequence[CopyPlace]:
    if (to and names) or (key_file and (not to or without_key)):
        raise ConfigurationError(
            "Name copies of the settings, or a place with --to; --key-file goes with --to, and not "
            "with --without-key."
        )
    places = copy_places(context.chosen(), names, to, key_file)
    if not places:
        raise ConfigurationError(
            "The settings have no [[copies]]; add one (docs/operations/copies.md shows how), or "
            "name a place with --to."
        )
    return places


def _copying(*, without_key: bool) -> Callable[[CopyPlace, Progress], CopyReport]:
    if not without_key:
        return partial(copy_repository, context.site().repository())

    def mirrored(place: CopyPlace, progress: Progress) -> CopyReport:
        with closing(open_objects(context.chosen(), context.chosen_copy())) as source:
            return mirror_without_key(source, place, progress)

    return mirrored


def _show(reports: Sequence[CopyReport]) -> None:
    table(
        ["copy", "way", ">objects", ">points", ">moved", ">took", ">damaged"],
        [
            (
                report.copy,
                report.way,
                str(report.objects) if report.way == "mirror" else "-",
                str(report.points) if report.way == "points" else "-",
                size(report.moved_bytes),
                seconds(report.seconds),
                str(len(report.damaged)),
            )
            for report in reports
        ],
    )
    for report in reports:
        for damage in report.damaged:
            err.print(f"{damage.object}: {damage.detail}", style="red")
        if report.slots_there:
            slots = ", ".join(name[:8] for name in report.slots_there)
            err.print(
                f"{report.copy} still has key slots that the repository has no longer ({slots}); what "
                f"they were made for opens it. Remove them with `atoll --copy {report.copy} repo key "
                "remove`.",
                style="yellow",
            )
