"""The text descriptor of a virtual disk: which files it is made of, and what lies below them.

Format: VMware, "Virtual Disk Format 5.0", section "The Descriptor File". Of the
kinds of extents that page leaves out, `SESPARSE` is named in QEMU's block/vmdk.c.
"""

import re
import secrets
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from atoll.model.errors import UnsupportedFormatError

MAX_DESCRIPTOR_BYTES = 64 << 10
_SECTOR = 512
_MAX_EXTENTS = 256
_MAX_SECTORS = (1 << 61) // _SECTOR
_EXTENT = re.compile(
    r"(?P<access>RW|RDONLY|NOACCESS) +(?P<sectors>\d{1,19}) +(?P<kind>[A-Z0-9]+)"
    r'(?: +"(?P<file>[^"]*)")?(?: +(?P<offset>\d{1,19}))?\s*'
)
_CONTENT_ID = re.compile(r"[0-9a-fA-F]{1,8}")
_NO_PARENT = 0xFFFFFFFF
_HEADS, _SECTORS = 255, 63


class ExtentKind(Enum):
    """How an extent keeps its part of the disk."""

    FLAT = "flat"
    ZERO = "zero"
    COWD = "vmfsSparse"
    SESPARSE = "seSparse"
    RAW = "raw"

    @property
    def sparse(self) -> bool:
        """Whether it holds some of its part only, and the disk below the rest."""
        return self in (ExtentKind.COWD, ExtentKind.SESPARSE)


_KINDS = {
    "VMFS": ExtentKind.FLAT,
    "FLAT": ExtentKind.FLAT,
    "ZERO": ExtentKind.ZERO,
    "VMFSSPARSE": ExtentKind.COWD,
    "SESPARSE": ExtentKind.SESPARSE,
    "VMFSRDM": ExtentKind.RAW,
    "VMFSRAW": ExtentKind.RAW,
}
_REFUSED = {"SPARSE": "a sparse disk of hosted products"}


class FileExtent(NamedTuple):
    """`length` bytes of a disk, kept in `file` from `file_offset`; a zero extent has no file."""

    file: str
    length: int
    file_offset: int
    kind: ExtentKind = ExtentKind.FLAT


class Parent(NamedTuple):
    """The disk below a delta: `hint` is where its descriptor lies, `content_id` what it must say."""

    hint: str
    content_id: int


class Descriptor(NamedTuple):
    """A disk's extents in order, its content id where it says one, and the disk below it."""

    extents: tuple[FileExtent, ...]
    content_id: int | None
    parent: Parent | None

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return sum(extent.length for extent in self.extents)


def parse_descriptor(text: bytes, path: str) -> Descriptor:
    """What a descriptor says; UnsupportedFormatError for what is none, and for other kinds of disk.

    A delta (a disk with one below it) must be made of sparse extents only.
    """
    if not text.lstrip().startswith(b"# Disk DescriptorFile"):
        raise UnsupportedFormatError(
            f"{path} is not a VMDK descriptor; name the small .vmdk file, not its -flat.vmdk."
        )
    extents: list[FileExtent] = []
    words: dict[str, str] = {}
    for raw in text.decode("utf-8", "replace").splitlines():
        line = raw.strip()
        if line.startswith(("RW ", "RDONLY ", "NOACCESS ")):
            extents.append(_extent(line, path))
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and words.setdefault(key, value.strip('"')) != value.strip('"'):
            raise _odd(path, f"says {key} twice")
    if not extents or len(extents) > _MAX_EXTENTS:
        raise _odd(path, f"describes a disk of {len(extents)} extents, which cannot be right")
    parent = _parent(words, path)
    kinds = {extent.kind for extent in extents}
    if parent is not None and not all(kind.sparse for kind in kinds):
        raise _odd(path, "lies on another disk, yet is no delta of a kind that Atoll knows")
    if ExtentKind.RAW in kinds and len(extents) > 1:
        raise _odd(path, "is a raw device mapping of several parts")
    return Descriptor(tuple(extents), _content_id(words, "CID", path), parent)


def descriptor_text(
    size_bytes: int,
    create_type: str,
    extents: Iterable[str],
    *,
    hardware_version: int,
    content_id: int | None = None,
) -> bytes:
    """The descriptor of a disk without a parent; `extents` are its extent lines.

    Without a `content_id` it gets a new one. The geometry is what ESX writes above 8 GiB.
    """
    # Any number but those that VMware gives a meaning of its own.
    identity = secrets.randbelow(_NO_PARENT - 1) if content_id is None else content_id
    sectors = size_bytes // _SECTOR
    lines = (
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={identity:08x}",
        f"parentCID={_NO_PARENT:08x}",
        f'createType="{create_type}"',
        "",
        "# Extent description",
        *extents,
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        'ddb.adapterType = "lsilogic"',
        f'ddb.geometry.cylinders = "{max(1, sectors // (_HEADS * _SECTORS))}"',
        f'ddb.geometry.heads = "{_HEADS}"',
        f'ddb.geometry.sectors = "{_SECTORS}"',
        f'ddb.virtualHWVersion = "{hardware_version}"',
        "",
    )
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _parent(words: dict[str, str], path: str) -> Parent | None:
    content_id = _content_id(words, "parentCID", path)
    if content_id is None or content_id == _NO_PARENT:
        return None
    hint = words.get("parentFileNameHint", "")
    if not hint or "\0" in hint:
        raise _odd(path, "is a delta that does not say which disk it lies on")
    if words.get("isNativeSnapshot", "no").lower() == "yes":
        raise UnsupportedFormatError(
            f"{path} is a snapshot that the storage keeps by itself (native), which is not read; "
            "remove the VM's VMware snapshots and run again."
        )
    return Parent(hint, content_id)


def _content_id(words: dict[str, str], key: str, path: str) -> int | None:
    value = words.get(key)
    if value is None:
        return None
    if _CONTENT_ID.fullmatch(value) is None:
        raise _odd(path, f"has a {key} that cannot be read")
    return int(value, 16)


def _extent(line: str, path: str) -> FileExtent:
    match = _EXTENT.fullmatch(line)
    if match is None:
        raise _odd(path, "has an extent line that cannot be read")
    kind, file = _KINDS.get(match["kind"]), match["file"] or ""
    sectors, offset = int(match["sectors"]), int(match["offset"] or 0)
    if kind is None:
        what = _REFUSED.get(match["kind"], f"of type {match['kind']}")
        raise UnsupportedFormatError(
            f"{path} is {what}, and only disks of VMFS and their deltas are read; "
            "convert the disk, or exclude it from the job."
        )
    if not 0 < sectors <= _MAX_SECTORS or offset > _MAX_SECTORS:
        raise _odd(path, f"claims an extent of {sectors} sectors, which cannot be right")
    if kind is ExtentKind.ZERO:
        return FileExtent("", sectors * _SECTOR, 0, kind)
    if not file or "/" in file or "\0" in file:
        raise UnsupportedFormatError(
            f"{path} keeps its data in another directory, which is not followed; "
            "move the disk's files together with Storage vMotion."
        )
    if offset and kind is not ExtentKind.FLAT:
        raise _odd(path, "has a delta that begins within its file")
    return FileExtent(file, sectors * _SECTOR, offset * _SECTOR, kind)


def _odd(path: str, what: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(f"{path} {what}; check the descriptor on the datastore.")
