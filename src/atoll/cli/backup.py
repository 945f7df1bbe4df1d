"""`atoll backup`: one run over some LUN groups; `resume`, `cleanup`: what was cut off, or died."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out, seconds, size, table
from atoll.cli.progress import LiveProgress
from atoll.director.proof import POWERED_OFF
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.progress import Progress, Silent
from atoll.service.backup import BackupResult, back_up, clean_site
from atoll.service.importing import tidy_restores
from atoll.service.island import tidy_island
from atoll.service.mounting import clear_dead_mounts
from atoll.service.recovering import tidy_recoveries
from atoll.service.resuming import resume_runs

LESSER_POINT = 4
"""Exit status of a backup that made a point less consistent than its VM's agent should give."""


def backup(
    vms: Annotated[list[str], typer.Argument(help="Names or instance UUIDs of VMs.")],
    full: Annotated[bool, typer.Option("--full", help="Read everything again.")] = False,
    accept_less: Annotated[
        bool,
        typer.Option(
            "--accept-less", help="Make crash-consistent points of guests that cannot be held."
        ),
    ] = False,
    catalogue: Annotated[
        bool | None,
        typer.Option(
            "--catalogue/--no-catalogue",
            help="List the guests' files for `atoll find`; else as the settings say.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, no progress.")] = False,
) -> None:
    """Back up VMs from one snapshot of their LUN groups, taken while all of them are held.

    Exit status 4 means that the points were made, but one is less consistent
    than an agent should give; the table says why.
    """
    site = context.site(accept_less=accept_less)
    if catalogue is not None:
        site = replace(site, catalogue=catalogue)
    if json:
        with _saying_what_is_kept():
            result = back_up(site, vms, Silent(), full=full)
        as_json(result)
    else:
        with _saying_what_is_kept(), LiveProgress() as progress:
            watched: Progress = progress
            result = back_up(site, vms, watched, full=full)
        report(result)
    if any(is_lesser(point.proof) for point in result.points):
        raise typer.Exit(LESSER_POINT)


def resume(
    run: Annotated[
        str | None, typer.Argument(help="A run, or the beginning of its name; all without.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, no progress.")] = False,
) -> None:
    """Go on with runs that were cut off while they copied: copy what is left of their snapshots.

    Nobody is held for it. A backup of one of their VMs does the same first. Exit status 1 means that
    a run could not be gone on with, and was given up.
    """
    site = context.site()
    if json:
        with _saying_what_is_kept():
            done = resume_runs(site, run, Silent())
        as_json(done)
    else:
        with _saying_what_is_kept(), LiveProgress() as progress:
            done = resume_runs(site, run, progress)
        for line in (said for each in done for said in each.said):
            out.print(line)
        if not done:
            out.print("No run was cut off while it copied.")
    if any(each.said and not each.points for each in done):
        raise typer.Exit(1)


@contextmanager
def _saying_what_is_kept() -> Iterator[None]:
    """Of an interrupted copy; what else fails says so with its error."""
    try:
        yield
    except KeyboardInterrupt as error:
        for note in getattr(error, "__notes__", ()):
            err.print(f"atoll: interrupted. {note}", soft_wrap=True)
        raise


def cleanup(
    drop_interrupted: Annotated[
        bool,
        typer.Option(
            "--drop-interrupted", help="Also give up runs that were cut off while they copied."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Clear what dead runs, mounts and refreshes left: thaw guests, delete snapshots no point needs.

    Runs that were cut off while they copied are named and kept for `atoll resume`.
    """
    site = context.site()
    done = [
        *clear_dead_mounts(),
        *clean_site(site, drop_interrupted=drop_interrupted),
        *tidy_island(site),
        *tidy_recoveries(site),
        *tidy_restores(site),
    ]
    if json:
        as_json(done)
    else:
        out.print("\n".join(done) if done else "Nothing was left behind.")


def report(result: BackupResult) -> None:
    """Print what a run made."""
    for line in result.cleaned:
        err.print(line, style="yellow")
    table(
        ["restore point", "consistency", ">held", ">read", ">of", ">added", "kind"],
        [
            (
                f"{point.vm}@{point.run}",
                str(point.proof.consistency),
                seconds(point.proof.hold.seconds) if point.proof.hold else "-",
                size(sum(disk.read_bytes for disk in point.disks)),
                size(sum(disk.size_bytes for disk in point.disks)),
                size(sum(disk.stored_bytes for disk in point.disks)),
                "incremental" if point.incremental else "full",
            )
            for point in result.points
        ],
    )
    names = ", ".join(f"{snapshot.group}@{snapshot.name}" for snapshot in result.snapshots)
    pause = max(snapshot.pause_seconds for snapshot in result.snapshots)
    out.print(
        f"Snapshot {names} held writes back for {seconds(pause)}; guests were held for "
        f"{seconds(result.hold_seconds)} from first to last; "
        f"copied in {seconds(result.copy_seconds)}."
    )
    for line in result.leftovers:
        err.print(line, style="red")
    for point in result.points:
        for why in point.proof.fell_back:
            err.print(f"{point.vm} was held the {point.proof.way or 'last'} way: {why}")
        for reason in point.proof.reasons:
            err.print(f"{point.vm} is {in_words(point.proof.consistency)}: {reason}", style="red")
    if result.bystanders:
        out.print(
            "Also on these LUNs, not in the job and only crash-consistent in the snapshot: "
            + ", ".join(bystander.name for bystander in result.bystanders)
        )


def in_words(consistency: Consistency) -> str:
    """What a point is, to go after `is`."""
    return "not consistent" if consistency is Consistency.NONE else f"{consistency}-consistent"


def is_lesser(proof: ConsistencyProof) -> bool:
    """Whether a VM that was running got less than its agent should give."""
    was_off = any(reason.startswith(POWERED_OFF) for reason in proof.reasons)
    lesser = bool(proof.reasons) and proof.consistency is not Consistency.APP
    return lesser and not was_off
