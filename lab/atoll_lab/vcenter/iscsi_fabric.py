"""The real storage network: iSCSI through libiscsi, with each host's own initiator name."""

import ctypes
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from atoll.model.errors import StorageUnreachableError
from atoll_lab.iscsi import IscsiError, IscsiLun, discover
from atoll_lab.iscsi.library import NORMAL_SESSION, Task, library
from atoll_lab.vcenter.fabric import LunHandle, ScsiIdentity

_TIMEOUT_SECONDS = 20
_REPORT_BYTES = 8 + 8 * 256
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
        lib = library()
        context = lib.iscsi_create_context(initiator.encode())
        try:
            lib.iscsi_set_session_type(context, NORMAL_SESSION)
            lib.iscsi_set_targetname(context, target.encode())
            lib.iscsi_set_timeout(context, _TIMEOUT_SECONDS)
            failed = lib.iscsi_connect_sync(context, portal.encode()) or lib.iscsi_login_sync(
                context
            )
            if failed:
                raise StorageUnreachableError(
                    f"{target} at {portal} refused {initiator}: {_said(context)}."
                )
            task = _report_luns()(context, 0, _REPORT_BYTES)
            if not task:
                raise StorageUnreachableError(
                    f"{target} at {portal} did not report its LUNs: {_said(context)}."
                )
            try:
                answer = task.contents
                if answer.status:
                    raise StorageUnreachableError(
                        f"{target} at {portal} failed REPORT LUNS with status {answer.status:#x}."
                    )
                data = ctypes.string_at(answer.datain.data, answer.datain.size)
            finally:
                lib.scsi_free_scsi_task(task)
            lib.iscsi_logout_sync(context)
            return list(_numbers(data))
        finally:
            lib.iscsi_destroy_context(context)

    def open(self, portal: str, target: str, lun: int, initiator: str) -> LunHandle:
        """Log in to one LUN."""
        return _Handle(portal, target, lun, initiator)


def _numbers(data: bytes) -> Iterator[int]:
    """LUN numbers of a REPORT LUNS answer (SPC-4, 6.33; SAM-5, 4.7.7: peripheral and flat)."""
    length = struct.unpack_from(">I", data)[0]
    for at in range(8, min(8 + length, len(data) - 7), 8):
        number = struct.unpack_from(">H", data, at)[0] & 0x3FFF
        if number:
            yield number


@cache
def _report_luns() -> "ctypes._FuncPointer":
    function = library().iscsi_reportluns_sync
    function.restype = ctypes.POINTER(Task)
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    return function


def _said(context: int) -> str:
    said: bytes = library().iscsi_get_error(context) or b""
    return said.decode(errors="replace").strip().rstrip(".") or "no reason given"


@contextmanager
def _reworded() -> Iterator[None]:
    """The fabric's callers know one error; the initiator's own is its cause."""
    try:
        yield
    except IscsiError as error:
        raise StorageUnreachableError(str(error)) from error
