"""Which of some LUNs carry VMFS extents, and which extents make a whole volume.

VMFS lies on an LVM of its own: each extent (LUN) names the volume it belongs to
and which part of it it is, so extents are matched by what they say, never by
the order or the names they come in. Structures: dissect.vmfs, `c_lvm.py`.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dissect.vmfs import exception as dissect_errors
from dissect.vmfs.lvm import LVM, Device, Volume

from atoll.blocks.partition_tables import read_table
from atoll.blocks.readers import SliceReader
from atoll.blocks.streams import as_file
from atoll.model.errors import UnsupportedFormatError
from atoll.model.readers import BlockReader

MAX_READ_BYTES = 64 << 20
_LVM_OFFSET = 1 << 20
_LVM_MAGIC = 0xC001D00D
_EXTENSION_POINTER = 0xC2
_MAX_EXTENSIONS = 64
_MAX_EXTENTS = 32
_MAX_PHYSICAL_EXTENTS = 1 << 20

_DISSECT_RAISES = (
    dissect_errors.Error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turn whatever dissect raises on damaged metadata into one UnsupportedFormatError."""
    try:
        yield
    except _DISSECT_RAISES as error:
        raise UnsupportedFormatError(
            f"{what} is damaged or of an unknown kind ({type(error).__name__}: {error}); "
            "check the volume with voma on the ESX host."
        ) from error


@dataclass(frozen=True)
class VolumeExtents:
    """A complete LVM volume. `luns` names its extents in order; `runs` places volume on LUN.

    A run is (volume offset, length, index into `luns`, LUN offset), in bytes,
    in order, without gaps from zero to the volume's size.
    """

    volume: Any
    luns: tuple[str, ...]
    runs: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class _Extent:
    lun: str
    offset: int
    size: int
    device: Any


def assemble(luns: Mapping[str, BlockReader]) -> list[VolumeExtents]:
    """The volumes of these LUNs; LUNs without VMFS are passed over.

    Raises UnsupportedFormatError when an extent of a volume is missing, there
    twice, or damaged.
    """
    extents = [found for name, reader in luns.items() for found in _extents(name, reader)]
    groups: dict[tuple[bytes, int], list[_Extent]] = {}
    for extent in extents:
        for described in extent.device.volumes:
            identity = described.volMeta.lvID
            groups.setdefault((identity.uuid.dumps(), identity.snapID), []).append(extent)
    return [_whole(members) for members in groups.values()]


def _extents(name: str, reader: BlockReader) -> Iterator[_Extent]:
    for offset, length in _candidates(reader):
        part = SliceReader(reader, offset, length)
        with damage_named(f"The VMFS extent on LUN {name}"):
            _check_extensions(part)
            device = Device(as_file(part, MAX_READ_BYTES))
            numbers = [described.extVolMeta.numDevs for described in device.volumes]
            if max(numbers, default=0) > _MAX_EXTENTS:
                raise ValueError(f"it claims to be one of {max(numbers)} extents")
            if device.metadata.numPEs > _MAX_PHYSICAL_EXTENTS:
                raise ValueError(f"it claims {device.metadata.numPEs} physical extents")
        yield _Extent(name, offset, length, device)


def _candidates(reader: BlockReader) -> Iterator[tuple[int, int]]:
    """Where on a LUN an extent begins: the LUN itself, or a partition of it."""
    if _has_magic(reader, 0):
        yield 0, reader.size_bytes
        return
    for entry in read_table(reader) or []:
        if entry.kind == "vmfs" and _has_magic(reader, entry.offset):
            yield entry.offset, entry.length


def _has_magic(reader: BlockReader, offset: int) -> bool:
    return reader.read(offset + _LVM_OFFSET, 4) == _LVM_MAGIC.to_bytes(4, "little")


def _check_extensions(part: BlockReader) -> None:
    """Large devices chain more metadata; a chain that bites its tail would never end."""
    (at,) = struct.unpack("<Q", part.read(_LVM_OFFSET + _EXTENSION_POINTER, 8))
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) == _MAX_EXTENSIONS:
            raise ValueError("its chain of metadata regions has no end")
        seen.add(at)
        (at,) = struct.unpack("<Q", part.read(at + 0x10, 8))


def _whole(members: list[_Extent]) -> VolumeExtents:
    names = ", ".join(member.lun for member in members)
    by_device = {id(member.device): member for member in members}
    if len({member.device.uuid for member in members}) != len(members):
        raise UnsupportedFormatError(
            f"LUNs {names} carry the same VMFS extent twice; "
            "leave out the copy, or give it a new signature."
        )
    with damage_named(f"The VMFS volume on LUN {names}"):
        (volume,) = _single(LVM([member.device for member in members]))
    if not volume.is_valid():
        raise UnsupportedFormatError(
            f"The VMFS volume {volume.name} on LUN {names} lacks some of its extents; "
            "put all LUNs it spans into one LUN group."
        )
    ordered = [by_device[id(device)] for device in volume.devices]
    with damage_named(f"The VMFS volume on LUN {names}"):
        runs = tuple(_placed(volume, ordered))
    return VolumeExtents(volume, tuple(member.lun for member in ordered), runs)


def _single(found: LVM) -> list[Volume]:
    if len(found.volumes) != 1:
        raise ValueError(f"it holds {len(found.volumes)} volumes, where ESX makes one")
    return list(found.volumes)


def _placed(volume: Any, ordered: list[_Extent]) -> Iterator[tuple[int, int, int, int]]:
    index = {id(member.device): at for at, member in enumerate(ordered)}
    expected = 0
    for begin, physical, length, device in volume.dataruns():
        member = ordered[index[id(device)]]
        if begin != expected or length <= 0:
            raise ValueError(f"its physical extents do not follow each other at {expected:#x}")
        if physical + length > member.size:
            raise ValueError(f"it reaches past the end of LUN {member.lun}")
        yield begin, length, index[id(device)], member.offset + physical
        expected += length
    if expected < volume.size:
        raise ValueError(f"its physical extents end at {expected:#x} of {volume.size:#x}")
