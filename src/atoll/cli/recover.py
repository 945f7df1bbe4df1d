"""`atoll recover`: a VM runs again at once, from the storage's snapshot or straight from the repository."""

import time
from typing import Annotated, Literal

import typer

from atoll.cli import context
from atoll.cli.networks import parse_network
from atoll.cli.output import as_json, err, moment, out, seconds, size, table
from atoll.cli.progress import LiveProgress
from atoll.cli.recovery_server import serve_until_ended
from atoll.model.errors import ConfigurationError
from atoll.service.recoveries import RecoverOptions
from atoll.service.recovering import (
    end_recovery,
    list_recoveries,
    recover_vm,
    resume_recovery,
)

app = typer.Typer(
    help="Let a VM run at once from a snapshot or a restore point.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The recovered VM's name, or the recovery's id.")]


@app.command("vm")
def vm(
    reference: Annotated[
        str, typer.Argument(help="VM@RUN, VM@latest, or a run of which one VM was captured.")
    ],
    host: Annotated[str, typer.Option(help="The ESX host that it is to run on.")],
    source: Annotated[
        Literal["snapshot", "repository"] | None,
        typer.Option("--from", help="Else the snapshot while the storage has it."),
    ] = None,
    name: Annotated[str, typer.Option(help="The new VM's name; else VM-recovered-RUN.")] = "",
    network: Annotated[
        str,
        typer.Option(
            help="Its network cards: `none` are not connected, `keep` as they were, or "
            "OLD=NEW[,OLD=NEW] by the networks' names."
        ),
    ] = "none",
    identity: Annotated[
        Literal["new", "keep"],
        typer.Option(help="Its BIOS UUID and MAC addresses. Keep those of a VM that is lost."),
    ] = "new",
    power_on: Annotated[bool, typer.Option("--power-on/--no-power-on", help="Power it on.")] = True,
    datastore: Annotated[
        str,
        typer.Option(help="From the repository: the datastore of the VM's own files."),
    ] = "",
    folder: Annotated[str, typer.Option(help="Path of the folder to put it in.")] = "",
    pool: Annotated[str, typer.Option(help="Path of the resource pool to put it in.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let a VM run where it lies: from a clone of the storage's snapshot, or from the repository.

    Production's VM, its disks and the restore point stay as they are. What the new VM writes goes to
    the clone, or beside the repository, until `atoll recover end` keeps or discards it.
    """
    began = time.monotonic()
    connected, mapped = parse_network(network)
    options = RecoverOptions(
        host=host,
        name=name,
        datastore=datastore,
        folder=folder,
        pool=pool,
        keep=identity == "keep",
        connected=connected,
        mapped=mapped,
        power_on=power_on,
        config=context.chosen(),
    )
    with LiveProgress() as progress:
        done = recover_vm(context.site(), reference, source, options, progress, began)
    if json:
        as_json(done)
        return
    record = done.recovery
    for sentence in done.told:
        err.print(sentence, style="yellow")
    state = "is on" if done.powered_on else "is there, switched off,"
    out.print(
        f"VM {record.name} {state} on {record.host} after {seconds(max(done.seconds.values()))}, from "
        f"the {record.source} of {record.reference}."
    )
    out.print(f"To end it: atoll recover end {record.name} --keep DATASTORE, or --discard")


@app.command("list")
def list_all(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the recoveries there are, those too that were cut short."""
    found = list_recoveries(context.site())
    if json:
        as_json(found)
        return
    table(
        ["recovery", "of", "from", "host", "began", "state", "power", ">written"],
        [
            (
                each.recovery.name,
                each.recovery.reference if each.recovery.vm else "-",
                each.recovery.source,
                each.recovery.host or "-",
                moment(each.recovery.began_at) if each.recovery.began_at else "-",
                each.state,
                "on" if each.powered_on else "off" if each.vm_name else "-",
                size(each.written_bytes) if each.recovery.source == "repository" else "-",
            )
            for each in found
        ],
    )


@app.command("end")
def end(
    name: Name,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="DATASTORE", help="Move the VM there, running or not, and keep it."
        ),
    ] = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Switch the VM off and drop all that it wrote.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """End a recovery; it may be repeated until it succeeds.

    With --keep the VM goes on all the while it is moved, by storage vMotion.
    """
    if discard == (keep is not None):
        raise ConfigurationError("Say either --keep DATASTORE or --discard; nothing was done.")
    with LiveProgress() as progress:
        done = end_recovery(context.site(), name, keep, progress)
    if json:
        as_json(done)
    else:
        out.print("\n".join(done))


@app.command("resume")
def resume(name: Name) -> None:
    """Serve the disks of a VM from the repository again, after this machine or their process died."""
    record = resume_recovery(context.site(), name, context.chosen())
    out.print(f"The disks of {record.name} are served to {record.host}.")


@app.command("serve")
def serve(name: Name) -> None:
    """Serve the disks of a VM from the repository until the recovery ends; what `resume` starts."""
    serve_until_ended(context.site(), name)
