"""The head of a catalogue: its volumes, what could not be read, and which page begins with what.

A catalogue is a blob of the repository in pieces: two of each page (names, numbers), then the
table of first entries, cut anywhere, and last the head. Byte by byte in docs/formats/catalogue.md.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from atoll.model.errors import RepositoryDamagedError

MAGIC = b"ATOLCAT\x01"
_HEAD = struct.Struct("<8sII")
_FIRST = np.dtype([("rows", "<u4"), ("volume", "<u2"), ("directory", "<u2"), ("name", "<u2")])
_KEYS_BYTES = 1 << 20
MAX_FAULTS = 1000


@dataclass(frozen=True, slots=True)
class VolumeFault:
    """Something at or below a path of a volume that is not in the catalogue, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class CatalogueVolume:
    """A volume of the VM: `address` as `disk1:part2`, what it holds, and where the guest mounts it.

    `tops` is for each of the `mounts` the directory that is mounted there: empty for all of the volume.
    `fault` says why nothing of it is in the catalogue, or that it is not whole; `faults` are at most a
    thousand of the `fault_count` places that could not be read.
    """

    address: str
    kind: str
    label: str
    uuid: str
    journal: str
    mounts: tuple[str, ...]
    tops: tuple[str, ...]
    entries: int
    fault: str
    fault_count: int
    faults: tuple[VolumeFault, ...]


@dataclass(frozen=True, slots=True)
class PageInfo:
    """A page: how many entries, the number of its volume, and the first entry's directory and name."""

    rows: int
    volume: int
    directory: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What a head and its table of first entries say."""

    volumes: tuple[CatalogueVolume, ...]
    pages: tuple[PageInfo, ...]


def pack_contents(contents: Contents) -> list[bytes]:
    """The pieces behind the pages."""
    firsts = np.zeros(len(contents.pages), _FIRST)
    for at, page in enumerate(contents.pages):
        firsts[at] = (page.rows, page.volume, len(page.directory), len(page.name))
    keys = firsts.tobytes() + b"".join(page.directory + page.name for page in contents.pages)
    cut = [keys[at : at + _KEYS_BYTES] for at in range(0, len(keys), _KEYS_BYTES)]
    text = json.dumps([asdict(volume) for volume in contents.volumes], separators=(",", ":"))
    return [*cut, _HEAD.pack(MAGIC, len(contents.pages), len(cut)) + text.encode()]


@dataclass(frozen=True, slots=True)
class Head:
    """What a head says; `pages` and `keys` count pages and pieces of the table of first entries."""

    pages: int
    keys: int
    volumes: tuple[CatalogueVolume, ...]


def unpack_head(head: bytes) -> Head:
    """Read it; RepositoryDamagedError if it is something else."""
    if len(head) < _HEAD.size:
        raise _damaged()
    magic, pages, keys = _HEAD.unpack_from(head)
    if magic != MAGIC:
        raise _damaged()
    try:
        return Head(pages, keys, tuple(map(_volume, json.loads(head[_HEAD.size :]))))
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged() from error


def unpack_firsts(head: Head, keys: bytes) -> list[PageInfo]:
    """Read the table of first entries; RepositoryDamagedError if it is something else."""
    at = head.pages * _FIRST.itemsize
    if at > len(keys):
        raise _damaged()
    found = []
    for rows, volume, directory, name in np.frombuffer(keys, _FIRST, head.pages).tolist():
        middle, end = at + directory, at + directory + name
        found.append(PageInfo(rows, volume, keys[at:middle], keys[middle:end]))
        at = end
    if at != len(keys) or any(page.volume >= len(head.volumes) for page in found):
        raise _damaged()
    return found


def _volume(value: dict[str, object]) -> CatalogueVolume:
    """A volume as this version or a later one wrote it."""
    known = {name: value[name] for name in CatalogueVolume.__slots__}
    faults: Sequence[dict[str, str]] = known["faults"]  # type: ignore[assignment]
    known["faults"] = tuple(VolumeFault(each["path"], each["reason"]) for each in faults)
    for names in ("mounts", "tops"):
        known[names] = tuple(known[names])  # type: ignore[arg-type]
    if len(known["mounts"]) != len(known["tops"]):  # type: ignore[arg-type]
        raise ValueError("each mount has a top")
    return CatalogueVolume(**known)  # type: ignore[arg-type]


def _damaged() -> RepositoryDamagedError:
    return RepositoryDamagedError(
        "The head of a file catalogue is not what was written; verify the repository. The files "
        "themselves are read from the disks: `atoll files --from-disks`."
    )
