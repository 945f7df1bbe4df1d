"""tgtd's management protocol over its UNIX socket (struct tgtadm_req, usr/tgtadm.h in tgt)."""

import os
import re
import socket
import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from atoll.model.errors import StorageUnreachableError

_REQUEST = struct.Struct("=ii64sIiQQIIIIII")
_REPLY = struct.Struct("=II")
_ANY = 2**64 - 1
_TIMEOUT_SECONDS = 30.0


class Mode(IntEnum):
    """What a request is about."""

    SYSTEM = 0
    TARGET = 1
    LOGICAL_UNIT = 2
    PORTAL = 3
    CONNECTION = 6
    ACCOUNT = 7


class Operation(IntEnum):
    """What a request does."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5
    STATISTICS = 6


class Refusal(IntEnum):
    """Reasons tgtd gives for refusing that callers act upon (usr/tgtadm_error.h)."""

    NO_TARGET = 4
    NO_LUN = 5
    NO_SESSION = 6
    NO_CONNECTION = 7
    NO_USER = 15
    TARGET_ACTIVE = 19
    LUN_ACTIVE = 20


class TgtRefusedError(StorageUnreachableError):
    """tgtd refused a request; `reason` is its number."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Session:
    """An initiator that is logged in; `connections` are iSCSI connection ids."""

    id: int
    initiator: str
    connections: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetView:
    """A target as tgtd has it. LUN fields are of LUN 1, empty while it has none."""

    id: int
    name: str
    ready: bool = True
    sessions: tuple[Session, ...] = ()
    path: str = ""
    size: str = ""
    online: bool = False
    read_only: bool = False
    initiators: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    """CHAP users, those the target answers with marked ` (outgoing)` as tgtd prints them."""


class TgtSocket:
    """Talks to one tgtd, a connection a request. `base` is what TGT_IPC_SOCKET was set to for it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        # tgtd adds its control port, of which we use one.
        self.path = base.with_name(f"{base.name}.0")

    def _connect(self) -> socket.socket | None:
        """A connection, or None when nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_SECONDS)
        try:
            connection.connect(os.fspath(self.path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except OSError as error:
            connection.close()
            raise StorageUnreachableError(
                f"The iSCSI daemon behind {self.path} takes no requests: {error}; "
                "look into its log beside the socket."
            ) from error
        return connection

    def call(
        self,
        operation: Operation,
        mode: Mode,
        *,
        target: int = -1,
        lun: int = _ANY,
        session: int = _ANY,
        connection: int = 0,
        parameters: str = "",
        outgoing: bool = False,
        force: bool = False,
    ) -> str:
        """Send one request, return tgtd's text; TgtRefusedError, StorageUnreachableError."""
        payload = parameters.encode() + b"\0" if parameters else b""
        request = _REQUEST.pack(
            mode, operation, b"iscsi", _REQUEST.size + len(payload), target, session, lun,
            connection, 0, 0, int(outgoing), 0, int(force),
        )  # fmt: skip
        stream = self._connect()
        if stream is None:
            raise StorageUnreachableError(
                f"The iSCSI daemon behind {self.path} is not running; reconcile starts it again."
            )
        with stream:
            try:
                stream.sendall(request + payload)
                reason, length = _REPLY.unpack(_receive(stream, _REPLY.size))
                text = _receive(stream, length - _REPLY.size) if length > _REPLY.size else b""
            except OSError as error:
                raise StorageUnreachableError(
                    f"The iSCSI daemon behind {self.path} did not answer: {error}; "
                    "look into its log beside the socket."
                ) from error
        if reason:
            raise TgtRefusedError(
                f"The iSCSI daemon behind {self.path} refused a request "
                f"({operation.name.lower()} {mode.name.lower().replace('_', ' ')} "
                f"{_shown(mode, parameters) or target}) for reason {reason}; look into its log "
                "beside the socket.",
                reason,
            )
        return text.rstrip(b"\0").decode(errors="replace")

    def targets(self) -> list[TargetView]:
        """All targets of this tgtd."""
        return parse_targets(self.call(Operation.SHOW, Mode.TARGET))

    def portals(self) -> list[str]:
        """Where this tgtd listens, as `address:port`."""
        shown = self.call(Operation.SHOW, Mode.PORTAL)
        return re.findall(r"Portal: (\S+),\d+", shown)

    def commands_in_flight(self, target: int) -> int:
        """Reads and writes that were handed to LUN 1 of a target and are not done."""
        lines = self.call(Operation.STATISTICS, Mode.TARGET, target=target).splitlines()[1:]
        counts = [[int(number) for number in line.split()] for line in lines]
        return sum(
            (line[4] - line[6]) + (line[8] - line[10]) for line in counts if line and line[1] == 1
        )


def parse_targets(text: str) -> list[TargetView]:
    """Read the text of `show target` (tgt_target_show_all in usr/target.c)."""
    views = []
    for block in re.split(r"^(?=Target \d+: )", text, flags=re.MULTILINE):
        if head := re.match(r"Target (\d+): (\S+)\n", block):
            views.append(_parse_target(TargetView(int(head[1]), head[2]), block))
    return views


def _parse_target(view: TargetView, block: str) -> TargetView:
    section = ""
    lun = ""
    sessions: list[Session] = []
    initiators: list[str] = []
    accounts: list[str] = []
    for line in block.splitlines()[1:]:
        if line.startswith("    ") and not line.startswith("     "):
            section = line.strip()
            continue
        key, _, value = line.strip().partition(": ")
        if section == "System information:" and key == "State":
            view = replace(view, ready=value == "ready")
        elif section == "I_T nexus information:":
            if key == "I_T nexus":
                sessions.append(Session(int(value), ""))
            elif key == "Initiator":
                sessions[-1] = replace(sessions[-1], initiator=value.split(" ")[0])
            elif key == "Connection":
                known = sessions[-1].connections
                sessions[-1] = replace(sessions[-1], connections=(*known, int(value)))
        elif section == "LUN information:":
            if key == "LUN":
                lun = value
            elif lun == "1" and key == "Backing store path":
                view = replace(view, path=value)
            elif lun == "1" and key == "Size":
                view = replace(view, size=value.split(",")[0])
            elif lun == "1" and key == "Online":
                view = replace(view, online=value == "Yes")
            elif lun == "1" and key == "Readonly":
                view = replace(view, read_only=value == "Yes")
        elif section == "Account information:":
            accounts.append(line.strip())
        elif section == "ACL information:":
            initiators.append(line.strip())
    return replace(
        view,
        sessions=tuple(sessions),
        initiators=tuple(initiators),
        accounts=tuple(accounts),
    )


def shown_size(size_bytes: int) -> str:
    """A size as `show target` prints it; two multiples of a MiB never look the same."""
    sectors = size_bytes // 512
    return f"{(sectors - (sectors // 625 - 974)) // 1950} MB"


def _shown(mode: Mode, parameters: str) -> str:
    """What may be told of a request: never a password."""
    return parameters.partition(",password=")[0] if mode is Mode.ACCOUNT else parameters


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise ConnectionResetError("it hung up")
        received += part
    return received
