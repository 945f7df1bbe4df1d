"""The text descriptor of a virtual disk: which flat files it is made of.

Format: VMware, "Virtual Disk Format 5.0", section "The Descriptor File".
"""

import re
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
_FLAT = ("VMFS", "FLAT")
_NO_PARENT = "ffffffff"
_REFUSED = {
    "VMFSSPARSE": "a snapshot's redo log",
    "SESPARSE": "a snapshot's redo log",
    "SPARSE": "a sparse disk of hosted products",
    "VMFSRDM": "a raw device mapping",
    "VMFSRAW": "a raw device mapping",
}


class FlatExtent(NamedTuple):
    """`length` bytes of a disk, in `file` from `file_offset`; zeros when `file` is empty."""

    file: str
    length: int
    file_offset: int


def parse_descriptor(text: bytes, path: str) -> list[FlatExtent]:
    """The flat extents of a disk in order.

    Raises UnsupportedFormatError for what is no descriptor, for snapshots
    (deltas), raw device mappings and other kinds of disk.
    """
    if not text.lstrip().startswith(b"# Disk DescriptorFile"):
        raise UnsupportedFormatError(
            f"{path} is not a VMDK descriptor; name the small .vmdk file, not its -flat.vmdk."
        )
    extents: list[FlatExtent] = []
    for raw in text.decode("utf-8", "replace").splitlines():
        line = raw.strip()
        key, equals, value = line.partition("=")
        if equals and key.strip() == "parentCID" and value.strip().lower() != _NO_PARENT:
            raise UnsupportedFormatError(
                f"{path} is a snapshot on top of another disk, which is not read directly; "
                "use the base disk below it, or consolidate the VM's snapshots."
            )
        if line.startswith(("RW ", "RDONLY ", "NOACCESS ")):
            extents.append(_extent(line, path))
    if not extents or len(extents) > _MAX_EXTENTS:
        raise UnsupportedFormatError(
            f"{path} describes a disk of {len(extents)} extents, which cannot be right; "
            "check the descriptor on the datastore."
        )
    return extents


def _extent(line: str, path: str) -> FlatExtent:
    match = _EXTENT.fullmatch(line)
    if match is None:
        raise UnsupportedFormatError(
            f"{path} has an extent line that cannot be read; check the descriptor on the datastore."
        )
    kind, file = match["kind"], match["file"] or ""
    sectors, offset = int(match["sectors"]), int(match["offset"] or 0)
    if kind not in (*_FLAT, "ZERO"):
        what = _REFUSED.get(kind, f"of type {kind}")
        raise UnsupportedFormatError(
            f"{path} is {what}, and only flat VMFS disks are read; "
            "convert the disk, or exclude it from the job."
        )
    if not 0 < sectors <= _MAX_SECTORS or offset > _MAX_SECTORS:
        raise UnsupportedFormatError(
            f"{path} claims an extent of {sectors} sectors, which cannot be right; "
            "check the descriptor on the datastore."
        )
    if kind == "ZERO":
        return FlatExtent("", sectors * _SECTOR, 0)
    if not file or "/" in file or "\0" in file:
        raise UnsupportedFormatError(
            f"{path} keeps its data in another directory, which is not followed; "
            "move the disk's files together with Storage vMotion."
        )
    return FlatExtent(file, sectors * _SECTOR, offset * _SECTOR)
