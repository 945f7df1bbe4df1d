"""What the agent says when it wakes up inside a restored guest, and how it is asked.

One JSON object a line over a virtio-serial port: `{"id": 1, "method":
"testify"}` brings `{"id": 1, "result": {guest_time, uptime_seconds,
filesystems: [...], applications: [...]}}`. The guest is a stranger: what it
sends is bounded and checked.
"""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

MAX_REPLY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RestoredFilesystem:
    """A mounted file system; `recovered` when its journal was replayed at this boot.

    None when the guest cannot tell.
    """

    mount: str
    source: str
    fstype: str
    recovered: bool | None


@dataclass(frozen=True, slots=True)
class RestoredApplication:
    """An application of the guest, `answering` or not yet.

    `witness` is the answer of the query that was also asked while it was held,
    `position` its notion of time. `wal_replayed_bytes` is how much log it
    replayed (None where it does not say), `repair_ran` whether it had to mend
    more than that.
    """

    kind: str
    name: str
    answering: bool
    witness: str | None
    wal_replayed_bytes: int | None
    repair_ran: bool
    position: str
    detail: str


@dataclass(frozen=True, slots=True)
class Testimony:
    """One answer. Times are seconds, `guest_time` since the epoch by the guest's clock."""

    guest_time: float
    uptime_seconds: float
    filesystems: tuple[RestoredFilesystem, ...]
    applications: tuple[RestoredApplication, ...]


class WitnessChannel:
    """The host's end of the port; never blocks for longer than it is told to."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pending = b""
        self._id = 0

    def ask(self) -> bool:
        """Send a request; False when QEMU is gone or the guest has not taken the last ones yet."""
        self._id += 1
        request = json.dumps({"id": self._id, "method": "testify"}).encode() + b"\n"
        self._channel.settimeout(0)
        try:
            # A request is shorter than any socket buffer: it goes whole or not at all.
            self._channel.sendall(request)
        except OSError:
            return False
        return True

    def listen(self, timeout_seconds: float) -> Testimony | None:
        """The next answer to any request; None when none came in time or QEMU is gone.

        Lines that are no answer are passed over: the guest's console noise, or
        the end of a reply whose beginning was lost.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            line, found, rest = self._pending.partition(b"\n")
            if found:
                self._pending = rest
                testimony = parse(line)
                if testimony is not None:
                    return testimony
                continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            self._channel.settimeout(remaining)
            try:
                chunk = self._channel.recv(65536)
            except OSError:
                return None
            if not chunk:
                return None
            self._pending += chunk
            if len(self._pending) > MAX_REPLY_BYTES:
                self._pending = b""


def parse(line: bytes) -> Testimony | None:
    """An answer to `testify`; None for anything else."""
    try:
        reply = json.loads(line)
        result = reply["result"]
        return Testimony(
            float(result["guest_time"]),
            float(result["uptime_seconds"]),
            tuple(_filesystem(item) for item in result["filesystems"]),
            tuple(_application(item) for item in result["applications"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _filesystem(item: Mapping[str, object]) -> RestoredFilesystem:
    recovered = item["recovered"]
    return RestoredFilesystem(
        str(item["mount"]),
        str(item["source"]),
        str(item["fstype"]),
        recovered if isinstance(recovered, bool) else None,
    )


def _application(item: Mapping[str, object]) -> RestoredApplication:
    replayed, witness = item.get("wal_replayed_bytes"), item.get("witness")
    return RestoredApplication(
        kind=str(item["kind"]),
        name=str(item["name"]),
        answering=item["answering"] is True,
        witness=None if witness is None else str(witness),
        wal_replayed_bytes=int(replayed) if isinstance(replayed, int | float) else None,
        repair_ran=item.get("repair_ran") is True,
        position=str(item.get("position") or ""),
        detail=str(item.get("detail") or ""),
    )
