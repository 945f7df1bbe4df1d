"""`atoll files`: look into a restore point without restoring it."""

from collections.abc import Sequence
from typing import Annotated

import typer

from atoll.catalogue.entries import CatalogueEntry
from atoll.cli import context
from atoll.cli.output import as_json, moment, printable, size, table
from atoll.cli.restored import browsing
from atoll.filesystems.interface import Entry
from atoll.service.cataloguing import catalogue_of

_KINDS = {"directory": "/", "symlink": "@", "fifo": "|", "socket": "=", "None": "?"}


def files(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    path: Annotated[str, typer.Argument(help="Path inside the guest.")] = "/",
    from_disks: Annotated[
        bool,
        typer.Option("--from-disks", help="Read the disks even where there is a catalogue."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List a directory of a guest as it was."""
    site = context.site()
    repository = site.repository()
    point = repository.find(reference)
    entries: Sequence[Entry | CatalogueEntry]
    if point.catalogue and not from_disks:
        entries = catalogue_of(repository, point).list(path)
    else:
        with browsing(site, reference) as browser:
            entries = list(browser.list(path))
            volume = browser.locate(path, follow=True).volume
            if stale := browser.staleness(volume):
                typer.echo(f"{stale}.", err=True)
    if json:
        as_json(entries)
        return
    table(
        ["mode", "owner", ">size", "changed", "~name"],
        [
            (
                f"{entry.mode & 0o7777:04o}",
                f"{entry.uid}:{entry.gid}",
                size(entry.size),
                moment(entry.mtime_ns / 1e9),
                one_line(entry.path.rsplit("/", 1)[-1])
                + _KINDS.get(str(entry.kind), "")
                + (f" -> {one_line(entry.target)}" if entry.target else ""),
            )
            for entry in entries
        ],
    )


def one_line(name: str) -> str:
    """A name on one line, whatever it holds."""
    return printable(name).replace("\n", "\\n")
