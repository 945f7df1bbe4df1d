"""What a host needs of the storage network, whoever provides it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ScsiIdentity:
    """A LUN's own word about itself; `naa` is `naa.` and lower-case hex digits."""

    naa: str
    serial: str
    vendor: str
    product: str


class LunHandle(Protocol):
    """A logged-in LUN. Offsets and lengths are bytes, multiples of 512."""

    @property
    def identity(self) -> ScsiIdentity:
        """From INQUIRY pages 0x80 and 0x83."""
        ...

    @property
    def size_bytes(self) -> int:
        """From READ CAPACITY."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; StorageUnreachableError."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`; StorageUnreachableError, also for a LUN that cannot be written."""
        ...

    def close(self) -> None:
        """Log out. Closing twice is harmless."""
        ...


class Fabric(Protocol):
    """The storage network as one initiator sees it.

    `portal` is `address:port`, `initiator` and `target` are IQNs. Every call
    raises StorageUnreachableError when the portal does not answer or refuses.
    Nothing is remembered between calls: what is withdrawn is gone at once.
    """

    def targets(self, portal: str, initiator: str) -> Sequence[str]:
        """SendTargets discovery: the targets this initiator may know of."""
        ...

    def luns(self, portal: str, target: str, initiator: str) -> Sequence[int]:
        """Numbers of the LUNs with a disk behind them."""
        ...

    def open(self, portal: str, target: str, lun: int, initiator: str) -> LunHandle:
        """Log in to one LUN."""
        ...
