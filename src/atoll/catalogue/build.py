"""Making the catalogue of a VM from its disks, a volume at a time, each parsed in the jail."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from atoll.catalogue.contents import (
    MAX_FAULTS,
    CatalogueVolume,
    Contents,
    PageInfo,
    VolumeFault,
    pack_contents,
)
from atoll.catalogue.cutting import page_bounds
from atoll.catalogue.pages import NamesPage, pack_stats
from atoll.catalogue.sorting import Sorted, sort_tables
from atoll.filesystems.interface import STALENESS
from atoll.filesystems.scanning import open_scan
from atoll.guestfiles.browser import FileBrowser
from atoll.guestfiles.mounts import GuestVolume
from atoll.model.errors import UnsupportedFormatError
from atoll.model.readers import BlockReader

Disks = Sequence[tuple[str, BlockReader]]


def pieces_of(
    disks: Disks, scanned: Callable[[str, int], None] = lambda address, entries: None
) -> Iterator[bytes]:
    """The pieces of a VM's catalogue; `disks` are (label, reader) in the VM's order.

    What cannot be read (an unknown file system, a damaged one) is said in the catalogue and stops
    nothing; what the readers raise does. `scanned` is told of each volume that was read.
    """
    with FileBrowser(disks) as browser:
        volumes, mounts = browser.volumes, browser.mounts.volumes
    found: list[CatalogueVolume] = []
    pages: list[PageInfo] = []
    for volume in volumes:
        where = sorted(
            (point, owner.top) for point, owner in mounts.items() if owner.address == volume.address
        )
        entries: Sorted | None = None
        journal, fault = "", ""
        try:
            if not volume.content.supported:
                raise volume.refusal()
            entries, journal = _scan(volume)
        except UnsupportedFormatError as error:
            fault = str(error)
        except (ArithmeticError, LookupError, ValueError, MemoryError) as error:
            # Whatever a hostile volume made of its tables, it must not keep its VM from being copied.
            fault = f"The file system contradicts itself ({type(error).__name__}: {error})."
        if journal == "unreplayed":
            fault = f"Not as new as the snapshot: {STALENESS}."
        if entries is not None:
            scanned(volume.address, len(entries.stats))
            for info, names, stats in pages_of(entries, len(found)):
                pages.append(info)
                yield names
                yield stats
        found.append(_described(volume, where, journal, fault, entries))
        del entries
    yield from pack_contents(Contents(tuple(found), tuple(pages)))


def _scan(volume: GuestVolume) -> tuple[Sorted, str]:
    with open_scan(volume.reader) as session:
        root = session.stat("/").inode
        return sort_tables(session.scan(), root), session.journal


def pages_of(entries: Sorted, volume: int) -> Iterator[tuple[PageInfo, bytes, bytes]]:
    """Each page of a volume by its number: what it begins with, and its two pieces."""
    for first, end in page_bounds(entries):
        part = slice(first, end)
        of = entries.directory[part]
        begins = np.flatnonzero(np.diff(of, prepend=-1))
        counts = np.diff(begins, append=end - first).astype(np.uint32)
        directories = [entries.directories[number] for number in of[begins].tolist()]
        page = NamesPage(directories, counts, _text(entries, part))
        stats = entries.stats[part]
        links = np.flatnonzero(stats["target"])
        targets = [
            entries.targets[start : start + length]
            for start, length in zip(
                entries.target_starts[part][links].tolist(),
                stats["target"][links].tolist(),
                strict=True,
            )
        ]
        info = PageInfo(end - first, volume, directories[0], page.name(0))
        yield info, page.to_bytes(), pack_stats(stats, targets)


def _text(entries: Sorted, part: slice) -> bytes:
    """The names of some entries, each with a zero byte behind it."""
    lengths = entries.lengths[part]
    ends = np.cumsum(lengths + 1)
    before = ends - lengths - 1
    text = np.zeros(int(ends[-1]), np.uint8)
    inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    text[np.repeat(before, lengths) + inside] = entries.text[
        np.repeat(entries.starts[part], lengths) + inside
    ]
    return text.tobytes()


def _described(
    volume: GuestVolume,
    mounts: Sequence[tuple[str, str]],
    journal: str,
    fault: str,
    entries: Sorted | None,
) -> CatalogueVolume:
    faults = entries.faults if entries is not None else []
    return CatalogueVolume(
        address=volume.address,
        kind=volume.content.kind,
        label=volume.content.label,
        uuid=volume.content.uuid,
        journal=journal,
        mounts=tuple(point for point, _ in mounts),
        tops=tuple(top for _, top in mounts),
        entries=len(entries.stats) if entries is not None else 0,
        fault=fault,
        fault_count=len(faults),
        faults=tuple(
            VolumeFault(path.decode("utf-8", "surrogateescape") or "/", reason)
            for path, reason in faults[:MAX_FAULTS]
        ),
    )
