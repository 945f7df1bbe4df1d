"""`atoll restore vm` and `atoll restore ova`: a restore point's VM back in vSphere, or as one file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from atoll.cli import context
from atoll.cli.networks import parse_network
from atoll.cli.output import as_json, err, out, seconds, size
from atoll.cli.progress import LiveProgress
from atoll.service.restoring import RestoreOptions, restore_ova, restore_vm


def vm(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    name: Annotated[
        str,
        typer.Option(help="The new VM's name; else its own if it is lost, or VM-restored-RUN."),
    ] = "",
    host: Annotated[str, typer.Option(help="The ESX host; else the one that has the VM now.")] = "",
    datastore: Annotated[
        str, typer.Option(help="The datastore of all its files; else where each disk lies or lay.")
    ] = "",
    folder: Annotated[str, typer.Option(help="Path of the folder to put it in.")] = "",
    pool: Annotated[str, typer.Option(help="Path of the resource pool to put it in.")] = "",
    network: Annotated[
        str | None,
        typer.Option(
            help="Its network cards: `none` are not connected, `keep` as they were, or "
            "OLD=NEW[,OLD=NEW] by the networks' names. Else none beside a VM that is still there."
        ),
    ] = None,
    identity: Annotated[
        Literal["new", "keep"] | None,
        typer.Option(help="UUIDs and MAC addresses. Else new beside a VM that is still there."),
    ] = None,
    over: Annotated[
        bool, typer.Option("--over", help="Take the place of the VM, which is deleted then.")
    ] = False,
    power_off: Annotated[
        bool,
        typer.Option("--power-off", help="With --over: switch the old VM off, hard, at the end."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all disks back from the host and compare them.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Restore a VM into vSphere through its API, disks and all; it is left switched off.

    Disks are streamed from the repository. With --over the old VM stays as it is
    until the new one is whole.
    """
    connected, mapped = parse_network(network) if network is not None else (None, {})
    options = RestoreOptions(
        name=name,
        host=host,
        datastore=datastore,
        folder=folder,
        pool=pool,
        keep=None if identity is None else identity == "keep",
        connected=connected,
        mapped=mapped,
        over=over,
        power_off=power_off,
        verify=verify,
    )
    with LiveProgress() as progress:
        done = restore_vm(context.site(), reference, options, progress)
    if json:
        as_json(done)
        return
    for sentence in done.told:
        err.print(sentence, style="yellow")
    read_back = ", read back and found the same" if done.verified else ""
    out.print(
        f"Restored {done.reference} as VM {done.name} ({done.moref}) on {done.host}: "
        f"{size(done.bytes)} of disks in {seconds(done.seconds)}{read_back}. It is switched off."
    )


def ova(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    target: Annotated[Path, typer.Argument(help="File to write, NAME.ova; must not exist.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a VM with its hardware and disks to one file that vSphere and others import."""
    with LiveProgress() as progress:
        report, told = restore_ova(context.site(), reference, target, progress)
    if json:
        as_json({"report": report, "told": told})
        return
    for sentence in told:
        err.print(sentence, style="yellow")
    out.print(
        f"Wrote {reference} to {target}: {size(report.file_bytes)} for {size(report.disk_bytes)} of "
        "disks."
    )
