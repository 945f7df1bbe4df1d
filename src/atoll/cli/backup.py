"""`atoll backup`: one run over some LUN groups; `atoll cleanup`: what dead runs left."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out, seconds, size, table
from atoll.cli.progress import LiveProgress
from atoll.director.proof import POWERED_OFF
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.progress import Progress, Silent
from atoll.service.backup import BackupResult, back_up, clean_site
from atoll.service.island import tidy_island
from atoll.service.mounting import clear_dead_mounts

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
    json: Annotated[bool, typer.Option("--json", help="Print JSON, no progress.")] = False,
) -> None:
    """Back up VMs from one snapshot of their LUN groups, taken while all of them are held.

    Exit status 4 means that the points were made, but one is less consistent
    than an agent should give; the table says why.
    """
    site = context.site(accept_less=accept_less)
    if json:
        result = back_up(site, vms, Silent(), full=full)
        as_json(result)
    else:
        with LiveProgress() as progress:
            watched: Progress = progress
            result = back_up(site, vms, watched, full=full)
        report(result)
    if any(is_lesser(point.proof) for point in result.points):
        raise typer.Exit(LESSER_POINT)


def cleanup(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Clear what dead runs, mounts and refreshes left: thaw guests, delete snapshots no point needs."""
    site = context.site()
    done = [*clear_dead_mounts(), *clean_site(site), *tidy_island(site)]
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
