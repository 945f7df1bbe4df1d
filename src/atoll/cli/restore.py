"""`atoll restore file` and `atoll restore disk`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out, size
from atoll.cli.progress import LiveProgress
from atoll.cli.restored import browsing, pick_disk
from atoll.recovery.disks import restore_disk
from atoll.recovery.files import restore_files

INCOMPLETE = 5
"""Exit status of a restore that brought files back, but not all."""

app = typer.Typer(help="Bring files or disks back.", no_args_is_help=True)


@app.command("file")
def restore_file(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    path: Annotated[str, typer.Argument(help="File or directory inside the guest.")],
    target: Annotated[Path, typer.Argument(help="Directory to restore into.")],
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    keep_privileges: Annotated[
        bool,
        typer.Option(
            "--keep-privileges",
            help="Keep set-user-ID, set-group-ID and capabilities, which count on this machine.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Restore a file or a tree with owners, modes, times, links, ACLs and attributes.

    Exit status 5 means that files were restored, but not all; each one missing
    is named.
    """
    with browsing(context.site(), reference) as browser:
        report = restore_files(
            browser, path, target, overwrite=overwrite, keep_privileges=keep_privileges
        )
    if json:
        as_json(report)
    else:
        out.print(f"Restored {report.files} files, {size(report.bytes)}, into {target}.")
        for lost in report.not_kept:
            err.print(f"not kept: {lost}", style="yellow")
    if report.missing:
        err.print(f"missing: {report.missing} of what was asked for", style="red")
        raise typer.Exit(INCOMPLETE)


@app.command("disk")
def restore_whole_disk(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    target: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    disk: Annotated[
        str | None, typer.Option(help="Label, VMDK name or number of the disk, if it has several.")
    ] = None,
    form: Annotated[Literal["raw", "vmdk"], typer.Option("--format", help="Image format.")] = "raw",
) -> None:
    """Restore one disk as a raw image or a VMDK."""
    repository = context.site().repository()
    point = repository.find(reference)
    image = pick_disk(point, disk)
    reader = repository.open_disk(image)
    try:
        with LiveProgress() as progress:
            progress.stage(point.vm, "restore", image.size_bytes)
            restore_disk(
                reader, target, form, progress=lambda done: progress.advance(point.vm, done)
            )
    finally:
        reader.close()
    out.print(f"Restored {image.label} of {point.vm}@{point.run} to {target}.")
