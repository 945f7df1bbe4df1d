"""Discovery and LUNs as one initiator sees them."""

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atoll_lab.iscsi.errors import (
    InitiatorRefusedError,
    IscsiError,
    ScsiCommandError,
    TargetUnreachableError,
)
from atoll_lab.iscsi.library import (
    DISCOVERY_SESSION,
    NORMAL_SESSION,
    UnmapRange,
    library,
)

_TRANSFER_BYTES = 1 << 20
_DEVICE_IDENTIFICATION = 0x83
_SERIAL_NUMBER = 0x80
_RECONNECTS = 3
_CHECK_CONDITION = 2
_UNIT_ATTENTION = 6
_ATTENTIONS = 8
_OWN_STATUS = 0x0F000000
"""libiscsi's own outcomes (cancelled, error, timeout) are above SCSI's one-byte status."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target a portal shows to an initiator; `portals` are `address:port`."""

    name: str
    portals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inquiry:
    """How a LUN introduces itself; `naa` is `naa.` and 32 hex digits, as ESX shows it."""

    naa: str
    serial: str
    vendor: str
    product: str


def discover(portal: str, initiator: str) -> list[Target]:
    """What the portal (`address:port`) shows this initiator, by name.

    TargetUnreachableError when nobody answers there.
    """
    session = _Session(initiator, DISCOVERY_SESSION)
    lib = library()
    try:
        if lib.iscsi_connect_sync(session.context, portal.encode()):
            raise TargetUnreachableError(
                f"Nobody answers at the iSCSI portal {portal}: {session.error()}; check that the "
                "storage serves it."
            )
        if lib.iscsi_login_sync(session.context):
            raise _login_error(session.error(), portal, initiator)
        head = lib.iscsi_discovery_sync(session.context)
        found = []
        address = head
        while address:
            portals = []
            place = address.contents.portals
            while place:
                portals.append(place.contents.portal.decode().partition(",")[0])
                place = place.contents.next
            found.append(Target(address.contents.target_name.decode(), tuple(portals)))
            address = address.contents.next
        if head:
            lib.iscsi_free_discovery_data(session.context, head)
        lib.iscsi_logout_sync(session.context)
        return sorted(found, key=lambda target: target.name)
    finally:
        session.destroy()


class IscsiLun:
    """One LUN through one session. Thread-safe: commands go one at a time.

    A lost connection is made again by itself, a few times, and what was under
    way is repeated, as real initiators do. Offsets and lengths are multiples of
    the LUN's block size. InitiatorRefusedError and TargetUnreachableError on
    opening; TargetUnreachableError and ScsiCommandError on commands.
    """

    def __init__(
        self, portal: str, target: str, lun: int, initiator: str, *, timeout_seconds: int = 60
    ) -> None:
        self._name = f"LUN {lun} of {target} at {portal}"
        self._lun = lun
        self._lock = threading.Lock()
        self._session: _Session | None = None
        session = _Session(initiator, NORMAL_SESSION, target, timeout_seconds)
        if library().iscsi_full_connect_sync(session.context, portal.encode(), lun):
            said = session.error()
            session.destroy()
            raise _login_error(said, portal, initiator, target)
        self._session = session
        self._block_bytes = 512
        try:
            _, self._block_bytes = self._capacity()
        except IscsiError:
            self.close()
            raise

    def inquiry(self) -> Inquiry:
        """Who the LUN says it is."""
        standard = self._inquire(0, 0)
        serial = self._inquire(1, _SERIAL_NUMBER)
        return Inquiry(
            "naa." + _naa(self._inquire(1, _DEVICE_IDENTIFICATION)),
            serial[4 : 4 + serial[3]].decode("ascii", "replace").strip(),
            standard[8:16].decode("ascii", "replace").strip(),
            standard[16:32].decode("ascii", "replace").strip(),
        )

    def read_capacity(self) -> int:
        """The size in bytes."""
        blocks, block_bytes = self._capacity()
        return blocks * block_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        pieces = []
        for place in range(offset, offset + length, _TRANSFER_BYTES):
            size = min(_TRANSFER_BYTES, offset + length - place)
            pieces.append(self._read(place, size))
        return b"".join(pieces)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`; on return the LUN has acknowledged it."""
        for start in range(0, len(data), _TRANSFER_BYTES):
            self._write(offset + start, data[start : start + _TRANSFER_BYTES])

    def flush(self) -> None:
        """Have the LUN put everything acknowledged on its disks."""
        self._command(
            "flush",
            lambda lib, context: lib.iscsi_synchronizecache16_sync(context, self._lun, 0, 0, 0, 0),
        )

    def unmap(self, offset: int, length: int) -> None:
        """Give the range back; it reads as zeros on Atoll's LUNs."""
        block = self._blocks(offset, length)
        ranges = (UnmapRange * 1)(UnmapRange(offset // block, length // block))
        self._command(
            f"unmap of {length} bytes at {offset}",
            lambda lib, context: lib.iscsi_unmap_sync(context, self._lun, 0, 0, ranges, 1),
        )

    def close(self) -> None:
        """Log out. Closing twice is harmless."""
        with self._lock:
            session, self._session = self._session, None
            if session is not None:
                library().iscsi_logout_sync(session.context)
                session.destroy()

    def __enter__(self) -> "IscsiLun":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _capacity(self) -> tuple[int, int]:
        data = self._command(
            "read capacity", lambda lib, context: lib.iscsi_readcapacity16_sync(context, self._lun)
        )
        return int.from_bytes(data[:8], "big") + 1, int.from_bytes(data[8:12], "big")

    def _inquire(self, vital: int, page: int) -> bytes:
        return self._command(
            "inquiry",
            lambda lib, context: lib.iscsi_inquiry_sync(context, self._lun, vital, page, 255),
        )

    def _blocks(self, offset: int, length: int) -> int:
        block = self._block_bytes
        if offset % block or length % block:
            raise IscsiError(
                f"{length} bytes at {offset} are not whole blocks of {block} bytes of {self._name}; "
                "align them."
            )
        return block

    def _read(self, offset: int, length: int) -> bytes:
        block = self._blocks(offset, length)
        data = self._command(
            f"read of {length} bytes at {offset}",
            lambda lib, context: lib.iscsi_read16_sync(
                context, self._lun, offset // block, length, block, 0, 0, 0, 0, 0
            ),
        )
        if len(data) != length:
            raise ScsiCommandError(
                f"{self._name} gave {len(data)} of {length} bytes at {offset}; check the storage."
            )
        return data

    def _write(self, offset: int, data: bytes) -> None:
        block = self._blocks(offset, len(data))
        self._command(
            f"write of {len(data)} bytes at {offset}",
            lambda lib, context: lib.iscsi_write16_sync(
                context, self._lun, offset // block, data, len(data), block, 0, 0, 0, 0, 0
            ),
        )

    def _command(self, what: str, issue: Callable[[ctypes.CDLL, int], Any]) -> bytes:
        with self._lock:
            for _ in range(_ATTENTIONS):
                answer = self._issue(what, issue)
                if answer is not None:
                    return answer
        raise ScsiCommandError(
            f"{self._name} kept asking for attention at a {what}; check the storage."
        )

    def _issue(self, what: str, issue: Callable[[ctypes.CDLL, int], Any]) -> bytes | None:
        """The answer's data; None for a unit attention, which is news and to be asked again."""
        lib = library()
        if self._session is None:
            raise IscsiError(f"{self._name} was closed; open it again.")
        task = issue(lib, self._session.context)
        if not task:
            raise self._lost(what)
        try:
            answer = task.contents
            if answer.status == 0:
                if answer.datain.size <= 0:
                    return b""
                return ctypes.string_at(answer.datain.data, answer.datain.size)
            if answer.status >= _OWN_STATUS:
                raise self._lost(what)
            if answer.status == _CHECK_CONDITION and answer.sense.key == _UNIT_ATTENTION:
                return None
            raise ScsiCommandError(
                f"{self._name} failed a {what} with status {answer.status:#x}, sense key "
                f"{answer.sense.key:#x}, {answer.sense.ascq:#06x}: {self._session.error()}."
            )
        finally:
            lib.scsi_free_scsi_task(task)

    def _lost(self, what: str) -> TargetUnreachableError:
        said = self._session.error() if self._session else "closed"
        return TargetUnreachableError(
            f"The session to {self._name} was lost at a {what}: {said}; open it again once it is "
            "served."
        )


class _Session:
    def __init__(
        self, initiator: str, kind: int, target: str | None = None, timeout_seconds: int = 60
    ) -> None:
        lib = library()
        self.context: int = lib.iscsi_create_context(initiator.encode())
        if not self.context:
            raise IscsiError(f"libiscsi has no memory for a session of {initiator}.")
        lib.iscsi_set_session_type(self.context, kind)
        if target is not None:
            lib.iscsi_set_targetname(self.context, target.encode())
        lib.iscsi_set_reconnect_max_retries(self.context, _RECONNECTS)
        lib.iscsi_set_timeout(self.context, timeout_seconds)

    def error(self) -> str:
        said: bytes = library().iscsi_get_error(self.context) or b""
        return said.decode(errors="replace").strip() or "no reason given"

    def destroy(self) -> None:
        library().iscsi_destroy_context(self.context)


def _login_error(said: str, portal: str, initiator: str, target: str = "discovery") -> IscsiError:
    # A target hides from those it does not know, so absent and refused look alike from here.
    if any(reason in said for reason in ("Target not found", "uthorization", "uthentication")):
        return InitiatorRefusedError(
            f"{portal} does not let {initiator} into {target}; present the LUN to this initiator."
        )
    if "LOGICAL_UNIT_NOT_SUPPORTED" in said:
        return InitiatorRefusedError(
            f"{target} at {portal} shows {initiator} no such LUN; present it to this initiator."
        )
    return TargetUnreachableError(
        f"{target} at {portal} cannot be reached as {initiator}: {said}; check that the storage "
        "serves it."
    )


def _naa(page: bytes) -> str:
    """The LUN's NAA-6 name in a device identification page (SPC-4, 7.8.6), in hex; else empty."""
    position = 4
    while position + 4 <= len(page):
        kind, length = page[position + 1] & 0xF, page[position + 3]
        name = page[position + 4 : position + 4 + length]
        if kind == 3 and length == 16 and name[0] >> 4 == 6:
            return name.hex()
        position += 4 + length
    return ""
