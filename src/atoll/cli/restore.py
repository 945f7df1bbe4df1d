"""`atoll restore`: files, disks and whole VMs brought back."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out, size
from atoll.cli.progress import LiveProgress
from atoll.cli.restore_vm import ova, vm
from atoll.cli.restored import browsing, pick_disk
from atoll.guestfiles.browser import FileBrowser
from atoll.model.errors import ConfigurationError, RestoreTargetError
from atoll.model.points import DiskImage, RestorePoint
from atoll.recovery.archives import ArchiveWriter, TarWriter, ZipWriter
from atoll.recovery.disks import DiskForm, restore_disk
from atoll.recovery.files import RestoreReport, archive_files, restore_files
from atoll.recovery.onto import restore_onto
from atoll.recovery.whole_files import write_file
from atoll.repository.repository import Repository

INCOMPLETE = 5
"""Exit status of a restore that brought files back, but not all."""

_STDOUT = Path("-")

app = typer.Typer(help="Bring files, disks or whole VMs back.", no_args_is_help=True)
app.command("vm")(vm)


@app.command("file")
def restore_file(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    path: Annotated[str, typer.Argument(help="File or directory inside the guest.")],
    target: Annotated[
        Path,
        typer.Argument(help="Directory to restore into; with --to a file to write, or -."),
    ],
    to: Annotated[
        Literal["directory", "tar", "zip"], typer.Option(help="What to write.")
    ] = "directory",
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    keep_both: Annotated[
        bool,
        typer.Option("--keep-both", help="Give what finds its name taken another, NAME.restored."),
    ] = False,
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

    A tar archive holds all of that, too; a zip archive does not, and says so.
    Exit status 5 means that files were restored, but not all; each one missing
    is named.
    """
    if overwrite and keep_both:
        raise ConfigurationError("Give either --overwrite or --keep-both; nothing was restored.")
    if to != "directory" and (overwrite or keep_both):
        raise ConfigurationError(
            "--overwrite and --keep-both are for restores into a directory; nothing was restored."
        )
    with browsing(context.site(), reference) as browser:
        if to == "directory":
            report = restore_files(
                browser,
                path,
                target,
                overwrite=overwrite,
                keep_both=keep_both,
                keep_privileges=keep_privileges,
            )
        else:
            report = _archive(browser, path, target, to, keep_privileges)
    _tell(report, target, json=json)
    if report.missing:
        raise typer.Exit(INCOMPLETE)


def _archive(
    browser: FileBrowser,
    path: str,
    target: Path,
    form: Literal["tar", "zip"],
    keep_privileges: bool,
) -> RestoreReport:
    kind: type[TarWriter | ZipWriter] = TarWriter if form == "tar" else ZipWriter
    reports = []

    def fill(descriptor: int) -> None:
        with open(descriptor, "wb", buffering=1 << 20, closefd=False) as file:
            writer: ArchiveWriter = kind(file, keep_privileges)
            reports.append(archive_files(browser, path, writer))

    if target != _STDOUT:
        write_file(target, fill)
        return reports[0]
    if sys.stdout.isatty():
        raise ConfigurationError(
            "An archive is not for a terminal; name a file, or send it to another program."
        )
    try:
        fill(sys.stdout.fileno())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RestoreTargetError(
            f"The archive could not be written to standard output ({error.strerror}); it is not whole."
        ) from error
    return reports[0]


def _tell(report: RestoreReport, target: Path, *, json: bool) -> None:
    """What was brought back: to standard error when the archive itself goes to standard output."""
    if json and target != _STDOUT:
        as_json(report)
    else:
        said = err if target == _STDOUT else out
        said.print(f"Restored {report.files} files, {size(report.bytes)}, into {target}.")
        for lost in report.not_kept:
            err.print(f"not kept: {lost}", style="yellow")
    if report.missing:
        err.print(f"missing: {report.missing} of what was asked for", style="red")


@app.command("disk")
def restore_whole_disk(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    target: Annotated[Path, typer.Argument(help="File to write; must not exist, but with --onto.")],
    disk: Annotated[
        str | None, typer.Option(help="Label, VMDK name or number of the disk, if it has several.")
    ] = None,
    form: Annotated[
        DiskForm,
        typer.Option(
            "--format",
            help="Image format: vmdk is flat, in two files, vmdk-stream one compressed file.",
        ),
    ] = "raw",
    onto: Annotated[
        bool,
        typer.Option(
            "--onto", help="The target is a raw image or device that exists: write what differs."
        ),
    ] = False,
    known_to_be: Annotated[
        str | None,
        typer.Option(
            help="With --onto: the point whose state the target is in, so that only what differs "
            "between the two points is read and written. A sample is compared."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --onto: read back what was compared.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Restore one disk as an image, or onto an image or device that exists.

    Killed with --onto, it leaves the target between two states; the same command brings it to the end.
    """
    if not onto and (known_to_be or verify):
        raise ConfigurationError("--known-to-be and --verify are for --onto; nothing was written.")
    if onto and form != "raw":
        raise ConfigurationError("--onto writes raw images and devices; leave out --format.")
    repository = context.site().repository()
    point = repository.find(reference)
    image = pick_disk(point, disk)
    changed = None
    if known_to_be is not None:
        changed = repository.changed_extents(_known(repository, known_to_be, point, image), image)
    reader = repository.open_disk(image)
    try:
        with LiveProgress() as progress:
            progress.stage(point.vm, "restore", image.size_bytes)

            def advance(count: int) -> None:
                progress.advance(point.vm, count)

            if onto:
                written = restore_onto(reader, target, changed, advance, verify=verify)
            else:
                restore_disk(reader, target, form, progress=advance)
    finally:
        reader.close()
    name = f"{image.label} of {point.vm}@{point.run}"
    if json:
        as_json(written if onto else {"disk": name, "target": str(target), "format": form})
    elif onto:
        out.print(
            f"Restored {name} onto {target}: compared {size(written.compared_bytes)}, wrote "
            f"{size(written.written_bytes)}."
        )
    else:
        out.print(f"Restored {name} to {target}.")


def _known(
    repository: Repository, reference: str, point: RestorePoint, image: DiskImage
) -> DiskImage:
    """The same disk in the point that a target is known to be."""
    other = repository.find(reference)
    for each in other.disks:
        if other.instance_uuid == point.instance_uuid and each.key == image.key:
            return each
    raise ConfigurationError(
        f"{other.vm}@{other.run} has no {image.label} of the same VM, so it says nothing of what "
        "differs; nothing was written."
    )


app.command("ova")(ova)
