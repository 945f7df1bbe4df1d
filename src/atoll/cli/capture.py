"""`atoll capture`: a hold and its snapshots, for other backup software to read."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.backup import LESSER_POINT, in_words, is_lesser
from atoll.cli.output import as_json, err, out, seconds, table
from atoll.cli.progress import LiveProgress
from atoll.model.progress import Silent
from atoll.service.capturing import CaptureResult, capture_vms


def capture(
    vms: Annotated[list[str], typer.Argument(help="Names or instance UUIDs of VMs.")],
    keep: Annotated[
        int, typer.Option(min=1, help="How many captures of each VM stay on the storage.")
    ] = 1,
    accept_less: Annotated[
        bool,
        typer.Option(
            "--accept-less", help="Take guests that cannot be held as they are, crash-consistent."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, no progress.")] = False,
) -> None:
    """Hold VMs, snapshot their LUN groups and keep the snapshots; nothing is copied.

    For `atoll island refresh`, `atoll mount` and `atoll export`, with which other software reads
    them. Exit status 4 means that a VM is less consistent than an agent should give.
    """
    site = context.site(accept_less=accept_less)
    if json:
        result = capture_vms(site, vms, Silent(), keep=keep)
        as_json(result)
    else:
        with LiveProgress() as progress:
            result = capture_vms(site, vms, progress, keep=keep)
        _report(result)
    if any(is_lesser(proof) for proof in result.proofs.values()):
        raise typer.Exit(LESSER_POINT)


def _report(result: CaptureResult) -> None:
    for line in result.cleaned:
        err.print(line, style="yellow")
    table(
        ["VM", "consistency", ">held"],
        [
            (name, str(proof.consistency), seconds(proof.hold.seconds) if proof.hold else "-")
            for name, proof in result.proofs.items()
        ],
    )
    out.print(
        f"Run {result.run}: guests were held for {seconds(result.hold_seconds)} from first to last."
    )
    for run in result.retired:
        out.print(f"Deleted the snapshots of run {run}.")
    for line in result.leftovers:
        err.print(line, style="red")
    for name, proof in result.proofs.items():
        for why in proof.fell_back:
            err.print(f"{name} was held the {proof.way or 'last'} way: {why}")
        for reason in proof.reasons:
            err.print(f"{name} is {in_words(proof.consistency)}: {reason}", style="red")
