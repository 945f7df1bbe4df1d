"""Files of VMFS volumes as a host sees them: read over the storage network, under the host's own name."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from atoll.blocks.vmfs import VmfsVolume, open_volumes
from atoll.model.extents import Extent
from atoll_lab.vcenter.fabric import Fabric, LunHandle
from atoll_lab.vcenter.state import LunState

_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class LunRange:
    """A range of a LUN, in bytes, as a host's initiator reaches it."""

    portal: str
    target: str
    number: int
    initiator: str
    offset: int
    size_bytes: int


class HostLuns(Protocol):
    """A host as far as reading goes."""

    @property
    def iqn(self) -> str:
        """Its initiator's name."""
        ...

    @property
    def luns(self) -> Sequence[LunState]:
        """What it saw at its last rescan."""
        ...


class _Reader:
    """A BlockReader of a LUN that one is logged in to."""

    def __init__(self, handle: LunHandle) -> None:
        self._handle = handle
        self.size_bytes = handle.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Bytes, fewer only past the end."""
        length = max(0, min(length, self.size_bytes - offset))
        start = offset // _BLOCK_BYTES * _BLOCK_BYTES
        end = min(self.size_bytes, -(-(offset + length) // _BLOCK_BYTES) * _BLOCK_BYTES)
        parts = [
            self._handle.read(at, min(_PIECE_BYTES, end - at))
            for at in range(start, end, _PIECE_BYTES)
        ]
        return b"".join(parts)[offset - start : offset - start + length]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """Each extent at once."""
        for extent in extents:
            yield extent.offset, self.read(extent.offset, extent.length)

    def holes(self) -> Iterable[Extent]:
        """None are known."""
        return ()

    def close(self) -> None:
        """Log out."""
        self._handle.close()


@contextmanager
def volume_on(
    fabric: Fabric, host: HostLuns, extents: Sequence[str]
) -> Iterator[tuple[VmfsVolume, dict[str, LunState]]]:
    """The volume on the LUNs `extents` (`naa.…`), and these by name; KeyError when the host lacks one.

    StorageUnreachableError, UnsupportedFormatError.
    """
    seen = {lun.naa: lun for lun in host.luns}
    luns = {naa: seen[naa] for naa in extents}
    with ExitStack() as stack:
        readers = {}
        for naa, lun in luns.items():
            handle = fabric.open(lun.portal, lun.target, lun.number, host.iqn)
            stack.callback(handle.close)
            readers[naa] = _Reader(handle)
        (volume,) = open_volumes(readers)
        yield volume, luns


def range_of(lun: LunState, iqn: str, offset: int, size_bytes: int) -> LunRange:
    """A range of a LUN for a guest on a host."""
    return LunRange(lun.portal, lun.target, lun.number, iqn, offset, size_bytes)
