"""`atoll find`, `atoll versions`, `atoll diff`: files over restore points, from their catalogues."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated

import typer

from atoll.catalogue.comparing import Change, ChangeKind
from atoll.catalogue.entries import CatalogueEntry
from atoll.catalogue.patterns import Bounds, Pattern
from atoll.catalogue.search import Found
from atoll.cli import context
from atoll.cli.files import one_line
from atoll.cli.moments import at_moment, bytes_of
from atoll.cli.output import as_json, err, moment, size, table
from atoll.filesystems.interface import EntryKind
from atoll.model.errors import ConfigurationError, RepositoryDamagedError
from atoll.service.finding import (
    Prepared,
    Scope,
    Version,
    changes,
    looking_into,
    prepare_search,
)
from atoll.service.finding import versions as versions_of

_SHOWN = 1000
_MARKS = {EntryKind.DIRECTORY: "/", EntryKind.SYMLINK: "@", EntryKind.FIFO: "|", None: "?"}
_SIGNS = {ChangeKind.ADDED: "+", ChangeKind.REMOVED: "-", ChangeKind.CHANGED: "M"}
_WORDS = {"mtime_ns": "time", "ctime_ns": "ctime", "uid": "owner", "gid": "group", "nlink": "links"}


def find(
    pattern: Annotated[
        str,
        typer.Argument(
            help="Part of a name, or a whole name with * and ?; with / of a path, like '/etc/**/*.conf'."
        ),
    ],
    vm: Annotated[list[str] | None, typer.Option(help="Only this VM; may be repeated.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only points taken since: 2026-11-26, '2026-11-26 14:30', 14d."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only points taken until then.")] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Only the newest point of each VM.")
    ] = False,
    inside: Annotated[
        str | None,
        typer.Option(
            "--in",
            help="Read this restore point or run itself; a captured run straight from its snapshots.",
        ),
    ] = None,
    path: Annotated[str, typer.Option(help="Only at and below this directory.")] = "",
    kind: Annotated[
        EntryKind | None, typer.Option("--type", help="Only files, directories, symlinks…")
    ] = None,
    larger: Annotated[
        str | None, typer.Option(help="Only files larger than: 500, 10K, 1.5G.")
    ] = None,
    smaller: Annotated[str | None, typer.Option(help="Only files smaller than that.")] = None,
    newer: Annotated[
        str | None, typer.Option(help="Only what was last written to since then.")
    ] = None,
    older: Annotated[
        str | None, typer.Option(help="Only what was last written to before then.")
    ] = None,
    case: Annotated[
        bool, typer.Option("--case", help="Tell capital letters from small ones.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=0, help="Stop after so many; 0 for all there are.")
    ] = _SHOWN,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, a line each.")] = False,
) -> None:
    """Find files by name in all restore points, the newest first.

    Each file of a VM is shown once, as it is in the newest point that has it; `atoll versions` shows
    what it was before.
    """
    looked_for = Pattern(pattern, case)
    bounds = Bounds(
        larger=bytes_of(larger),
        smaller=bytes_of(smaller),
        newer=at_moment(newer),
        older=at_moment(older),
        kind=kind,
        below=path,
    )
    if inside is not None:
        if since or until or newest:
            raise ConfigurationError(
                "--in names one point or run; leave --since and the like away."
            )
        with looking_into(context.site(), inside, looked_for, bounds, vm or ()) as prepared:
            _show(prepared, limit, json=json)
        return
    scope = Scope(tuple(vm or ()), at_moment(since), at_moment(until, end=True), newest)
    _show(prepare_search(context.site(), looked_for, bounds, scope), limit, json=json)


def _show(prepared: Prepared, limit: int, *, json: bool) -> None:
    found = prepared.search.run(prepared.catalogues)
    shown = islice(found, limit) if limit else found
    count = _print_json(shown) if json else _print_lines(shown)
    if limit and count == limit and next(found, None) is not None:
        err.print(f"There are more; these are the first {limit} (--limit 0 shows all).")
    found.close()
    if not count:
        err.print("Nothing found.")
    if prepared.without:
        names = sorted({f"{point.vm}@{point.run}" for point in prepared.without})
        some = ", ".join(names[-3:])
        err.print(
            f"{len(names)} restore points have no catalogue and were not searched ({some}); "
            "`--in POINT` reads one from its disks.",
            style="yellow",
        )
    damaged = prepared.damaged()
    for where, error in damaged:
        err.print(f"The catalogue of {where} could not be read: {error}", style="red")
    if damaged:
        raise typer.Exit(RepositoryDamagedError.exit_status)


def _print_lines(found: Iterable[Found]) -> int:
    count = 0
    for each in found:
        entry = each.entry
        if not count:
            sys.stdout.write(f"{'size':>10}  {'changed':<19}  file\n")
        written = moment(entry.mtime_ns / 1e9) if entry.kind else "damaged"
        sys.stdout.write(
            f"{size(entry.size):>10}  {written:<19}  {each.vm}@{each.run}:{named(entry)}\n"
        )
        if not count:
            sys.stdout.flush()
        count += 1
    return count


def _print_json(found: Iterable[Found]) -> int:
    count = 0
    for each in found:
        as_json(each, lines=True)
        count += 1
    return count


def named(entry: CatalogueEntry) -> str:
    """An entry's path on one line, whatever it holds, with a sign of its kind."""
    target = f" -> {one_line(entry.target)}" if entry.target else ""
    return one_line(entry.path) + _mark(entry) + target


def _mark(entry: CatalogueEntry) -> str:
    return "" if entry.path.endswith("/") else _MARKS.get(entry.kind, "")


def versions(
    file: Annotated[str, typer.Argument(help="VM:/path of a file.", metavar="VM:PATH")],
    since: Annotated[str | None, typer.Option(help="Only points taken since then.")] = None,
    until: Annotated[str | None, typer.Option(help="Only points taken until then.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what one file was in each restore point of its VM, and since when it is gone."""
    vm, colon, path = file.partition(":")
    if not colon or not path:
        raise ConfigurationError(f"Name a VM and a path in it, as app1:/etc/passwd; not {file!r}.")
    scope = Scope(since=at_moment(since), until=at_moment(until, end=True))
    found = versions_of(context.site().repository(), vm, path, scope)
    if json:
        as_json(found)
        return
    table(
        ["first in", "last in", ">points", ">size", "changed", "mode", "owner", "inode"],
        [
            (
                f"{vm}@{version.first_run}",
                f"{vm}@{version.last_run}",
                str(version.points),
                *_columns(version),
            )
            for version in found
        ],
    )


def _columns(version: Version) -> tuple[str, str, str, str, str]:
    entry = version.entry
    if entry is None:
        return "", "not there", "", "", ""
    if entry.kind is None:
        return "", "damaged", "", "", ""
    return (
        size(entry.size),
        moment(entry.mtime_ns / 1e9),
        f"{entry.mode:04o}",
        f"{entry.uid}:{entry.gid}",
        str(entry.inode),
    )


def diff(
    older: Annotated[str, typer.Argument(help="The point to begin with: VM@RUN.")],
    newer: Annotated[str, typer.Argument(help="The point to compare it with: VM@latest.")],
    path: Annotated[str, typer.Argument(help="Only at and below this path of the guest.")] = "/",
    all_changes: Annotated[
        bool,
        typer.Option("--all", help="Also files of which only owner, mode, links or inode changed."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, a line each.")] = False,
) -> None:
    """Show which files came, went or changed between two restore points of a VM.

    `+` came, `-` is gone, `M` was written to; with --all also what else changed.
    """
    counts: Counter[ChangeKind] = Counter()
    repository = context.site().repository()
    for change in _wanted(changes(repository, older, newer, path), all_changes=all_changes):
        counts[change.kind] += 1
        if json:
            as_json(change, lines=True)
        else:
            _print_change(change)
    if not json:
        came, gone, changed = (counts[kind] for kind in ChangeKind)
        err.print(f"{came} came, {gone} are gone, {changed} changed.")


def _wanted(found: Iterator[Change], *, all_changes: bool) -> Iterator[Change]:
    return (change for change in found if all_changes or change.content)


def _print_change(change: Change) -> None:
    entry = change.entry
    sizes = size(entry.size)
    if change.before and change.after and change.before.size != change.after.size:
        sizes = f"{size(change.before.size)} -> {sizes}"
    fields = [f for f in change.fields if f != "ctime_ns" or "mtime_ns" not in change.fields]
    what = ", ".join(_WORDS.get(field, field) for field in fields)
    said = f"  ({what})" if what else ""
    sys.stdout.write(f"{_SIGNS[change.kind]} {sizes:>21}  {named(entry)}{said}\n")
