"""The real storage network: iSCSI through libiscsi, with each host's own initiator name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from atoll.model.errors import StorageUnreachableError
from atoll.storage.initiator import IscsiError, IscsiLun, discover, lun_numbers
from atoll_lab.vcenter.fabric import LunHandle, ScsiIdentity

_TIMEOUT_SECONDS = 20
_NO_NAME = "naa."


class _Handle:
    """An open LUN."""

    def __init__(self, portal: str, target: str, lun: int, initiator: str) -> None:
        with _reworded():
            self._lun = IscsiLun(portal, target, lun, initiator, timeout_seconds=_TIMEOUT_SECONDS)
            try:
                inquiry = self._lun.inquiry()
                self.size_bytes = self._lun.read_capacity()
            except IscsiError:
                self._lun.close()
                raise
        if inquiry.naa == _NO_NAME:
            self._lun.close()
            raise StorageUnreachableError(
                f"LUN {lun} of {target} has no NAA name, so a host cannot tell it from others."
            )
        self.identity = ScsiIdentity(inquiry.naa, inquiry.serial, inquiry.vendor, inquiry.product)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        with _reworded():
            return self._lun.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """All of `data`."""
        with _reworded():
            self._lun.write(offset, data)

    def close(self) -> None:
        """Log out."""
        self._lun.close()


class IscsiFabric:
    """Implements Fabric."""

    def targets(self, portal: str, initiator: str) -> Sequence[str]:
        """SendTargets discovery."""
        with _reworded():
            return [target.name for target in discover(portal, initiator)]

    def luns(self, portal: str, target: str, initiator: str) -> Sequence[int]:
        """REPORT LUNS; LUN 0 is left out, tgt keeps its controller there."""
        with _reworded():
            numbers = lun_numbers(portal, target, initiator, timeout_seconds=_TIMEOUT_SECONDS)
        return [number for number in numbers if number]

    def open(self, portal: str, target: str, lun: int, initiator: str) -> LunHandle:
        """Log in to one LUN."""
        return _Handle(portal, target, lun, initiator)


@contextmanager
def _reworded() -> Iterator[None]:
    """The fabric's callers know one error; the initiator's own is its cause."""
    try:
        yield
    except IscsiError as error:
        raise StorageUnreachableError(str(error)) from error
