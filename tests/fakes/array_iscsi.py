"""An array's iSCSI target: one name on all portals, LUN masking and CHAP by initiator (RFC 7143)."""

import hashlib
import hmac
import os
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from array_scsi import Answer, Disk, execute, no_such_unit, report_luns

_RECEIVE = 262144
_BURST = 1 << 20
_NOBODY = 0xFFFFFFFF
_WINDOW = 64


@dataclass(frozen=True)
class Account:
    """What an initiator must prove, and what the target proves in return."""

    user: str
    secret: str
    mutual_user: str | None = None
    mutual_secret: str | None = None


class Door(Protocol):
    """Whom the array lets in, and to what; asked anew at every command."""

    def admits(self, initiator: str) -> bool: ...

    def account(self, initiator: str) -> Account | None: ...

    def disks(self, initiator: str) -> dict[int, Disk]: ...


class IscsiTarget:
    """Serves until closed. `portals` are (address, port)."""

    def __init__(
        self, name: str, door: Door, addresses: tuple[str, ...] = ("127.0.0.1",), port: int = 0
    ) -> None:
        self.name = name
        self.door = door
        self.portals: list[tuple[str, int]] = []
        self._listeners: list[socket.socket] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        for address in addresses:
            try:
                listener = socket.create_server((address, port))
            except OSError:
                self.close()
                raise
            port = listener.getsockname()[1]
            self._listeners.append(listener)
            self.portals.append((address, port))
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, EOFError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Connection(self, connection).run()
        with self._lock:
            self._connections.discard(connection)


@dataclass
class _Write:
    """A command whose data is still coming."""

    header: bytes
    data: bytearray
    received: int
    transfers: int = 0
    burst_end: int = 0


@dataclass
class _Connection:
    target: IscsiTarget
    socket: socket.socket
    initiator: str = ""
    discovery: bool = False
    status: int = 1
    expected: int = 1
    receive: int = 8192
    burst: int = 262144
    immediate: bool = True
    writes: dict[int, _Write] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        if not self._login():
            return
        while True:
            header, data = self._take()
            kind = header[0] & 0x3F
            if kind not in (0x05,) and not header[0] & 0x40:
                self.expected = (struct.unpack_from(">I", header, 24)[0] + 1) & 0xFFFFFFFF
            if kind == 0x01:
                self._command(header, data)
            elif kind == 0x05:
                self._data_out(header, data)
            elif kind == 0x00:
                if header[16:20] != b"\xff\xff\xff\xff":
                    self._send(0x20, header, 0x80, data=data, at20=_NOBODY)
            elif kind == 0x02:
                self._send(0x22, header, 0x80)
            elif kind == 0x04:
                self._text(header)
            elif kind == 0x06:
                self._send(0x26, header, 0x80)
                return
            else:
                return

    # Login (RFC 7143, 11.12 and 12.1)

    def _login(self) -> bool:
        challenge, number, proven = os.urandom(16), os.urandom(1)[0], False
        while True:
            header, data = self._take()
            if header[0] & 0x3F != 0x03:
                return False
            keys = _keys(data)
            stage, transit, next_stage = header[1] >> 2 & 3, header[1] & 0x80, header[1] & 3
            self.expected = struct.unpack_from(">I", header, 24)[0]
            self.initiator = keys.get("InitiatorName", self.initiator).lower()
            if keys.get("SessionType") == "Discovery":
                self.discovery = True
            if keys.get("TargetName", self.target.name) != self.target.name:
                return self._refuse(header, 0x0203)
            if not self.discovery and not self.target.door.admits(self.initiator):
                return self._refuse(header, 0x0202)
            account = None if self.discovery else self.target.door.account(self.initiator)
            answer: dict[str, str] = {}
            if stage == 0:
                if account is None or proven:
                    if "AuthMethod" in keys:
                        answer["AuthMethod"] = "None"
                elif "CHAP_R" in keys:
                    given = _binary(keys["CHAP_R"])
                    right = _chap(number, account.secret, challenge)
                    if keys.get("CHAP_N") != account.user or not hmac.compare_digest(given, right):
                        return self._refuse(header, 0x0201)
                    proven = True
                    if "CHAP_C" in keys:
                        if account.mutual_secret is None:
                            return self._refuse(header, 0x0201)
                        theirs = _binary(keys["CHAP_C"])
                        mine = _chap(int(keys["CHAP_I"]), account.mutual_secret, theirs)
                        answer["CHAP_N"] = account.mutual_user or ""
                        answer["CHAP_R"] = "0x" + mine.hex()
                elif "CHAP_A" in keys:
                    if "5" not in keys["CHAP_A"].split(","):
                        return self._refuse(header, 0x0201)
                    answer = {"CHAP_A": "5", "CHAP_I": str(number)}
                    answer["CHAP_C"] = "0x" + challenge.hex()
                else:
                    if "CHAP" not in keys.get("AuthMethod", "None").split(","):
                        return self._refuse(header, 0x0201)
                    answer["AuthMethod"] = "CHAP"
                if account is not None and not proven:
                    transit = next_stage = 0
            elif account is not None and not proven:
                return self._refuse(header, 0x0201)
            else:
                answer |= self._operational(keys)
            self._answer_login(header, stage, transit, next_stage, answer)
            if transit and next_stage == 3:
                return True

    def _operational(self, keys: dict[str, str]) -> dict[str, str]:
        answer = {}
        for key, value in keys.items():
            if key in ("HeaderDigest", "DataDigest"):
                answer[key] = "None"
            elif key == "MaxRecvDataSegmentLength":
                self.receive = min(int(value), _RECEIVE)
                answer[key] = str(_RECEIVE)
            elif key == "MaxBurstLength":
                self.burst = min(int(value), _BURST)
                answer[key] = str(self.burst)
            elif key == "FirstBurstLength":
                answer[key] = str(min(int(value), _RECEIVE))
            elif key in ("MaxConnections", "MaxOutstandingR2T"):
                answer[key] = "1"
            elif key == "InitialR2T":
                answer[key] = "Yes"
            elif key in ("ImmediateData", "DataPDUInOrder", "DataSequenceInOrder"):
                answer[key] = value
            elif key in ("DefaultTime2Wait", "DefaultTime2Retain", "ErrorRecoveryLevel"):
                answer[key] = "0"
            elif key in ("IFMarker", "OFMarker"):
                answer[key] = "No"
        return answer

    def _answer_login(
        self, asked: bytes, stage: int, transit: int, next_stage: int, answer: dict[str, str]
    ) -> None:
        if stage == 0 or "MaxBurstLength" in answer:
            answer.setdefault("TargetPortalGroupTag", "1")
        body = "".join(f"{key}={value}\0" for key, value in answer.items()).encode()
        head = bytearray(48)
        head[0], head[1] = 0x23, (0x80 if transit else 0) | stage << 2 | (next_stage & 3)
        head[8:14] = asked[8:14]
        head[14:16] = b"\0\1" if transit and next_stage == 3 else b"\0\0"
        head[16:20] = asked[16:20]
        self._number(head)
        self._put(head, body)

    def _refuse(self, asked: bytes, status: int) -> bool:
        head = bytearray(48)
        head[0] = 0x23
        head[8:14], head[16:20] = asked[8:14], asked[16:20]
        self._number(head)
        struct.pack_into(">H", head, 36, status)
        self._put(head, b"")
        return False

    # Full feature phase

    def _text(self, header: bytes) -> None:
        lines = [f"TargetName={self.target.name}"]
        lines += [f"TargetAddress={host}:{port},1" for host, port in self.target.portals]
        body = "".join(f"{line}\0" for line in lines).encode()
        self._send(0x24, header, 0x80, data=body, at20=_NOBODY)

    def _command(self, header: bytes, data: bytes) -> None:
        length = struct.unpack_from(">I", header, 20)[0]
        if header[1] & 0x20 and len(data) < length:
            write = _Write(header, bytearray(length), len(data))
            write.data[: len(data)] = data
            self.writes[struct.unpack_from(">I", header, 16)[0]] = write
            self._ask_for_data(write)
        else:
            self._execute(header, data)

    def _ask_for_data(self, write: _Write) -> None:
        length = min(self.burst, len(write.data) - write.received)
        write.burst_end = write.received + length
        head = bytearray(48)
        head[0], head[1] = 0x31, 0x80
        head[8:20] = write.header[8:20]
        head[20:24] = write.header[16:20]
        self._number(head, spend=False)
        struct.pack_into(">III", head, 36, write.transfers, write.received, length)
        write.transfers += 1
        self._put(head, b"")

    def _data_out(self, header: bytes, data: bytes) -> None:
        tag, offset = (struct.unpack_from(">I", header, at)[0] for at in (16, 40))
        write = self.writes[tag]
        write.data[offset : offset + len(data)] = data
        write.received += len(data)
        if not header[1] & 0x80:
            return
        if write.received < len(write.data):
            self._ask_for_data(write)
        else:
            del self.writes[tag]
            self._execute(write.header, bytes(write.data))

    def _execute(self, header: bytes, data: bytes) -> None:
        command = header[32:48]
        number = struct.unpack_from(">H", header, 8)[0] & 0x3FFF
        disks = self.target.door.disks(self.initiator)
        if command[0] == 0xA0:
            answer = report_luns(command, disks)
        elif number not in disks:
            answer = no_such_unit(command)
            self.sizes.pop(number, None)
        else:
            answer = self._attention(number, disks[number], command)
            if answer is None:
                answer = execute(disks[number], command, data)
        self._respond(header, answer)

    def _attention(self, number: int, disk: Disk, command: bytes) -> Answer | None:
        """A session is told once that a unit has another size than it had."""
        size = disk.size()
        before = self.sizes.get(number)
        if command[0] == 0x12:
            return None
        self.sizes[number] = size
        return Answer(sense=(6, 0x2A09)) if before not in (None, size) else None

    def _respond(self, header: bytes, answer: Answer) -> None:
        length = struct.unpack_from(">I", header, 20)[0]
        data = answer.data[:length]
        for number, at in enumerate(range(0, len(data), self.receive)):
            piece = data[at : at + self.receive]
            end = at + len(piece)
            last = end == len(data)
            head = bytearray(48)
            head[0] = 0x25
            head[1] = 0x80 if last or end // self.burst != at // self.burst else 0
            head[16:20] = header[16:20]
            head[20:24] = b"\xff\xff\xff\xff"
            self._number(head, spend=False)
            struct.pack_into(">II", head, 36, number, at)
            self._put(head, piece)
        head = bytearray(48)
        head[0], head[1] = 0x21, 0x80
        head[16:20] = header[16:20]
        sense = b""
        if answer.sense is not None:
            head[3] = 2
            fixed = bytearray(18)
            fixed[0], fixed[2], fixed[7] = 0x70, answer.sense[0], 10
            struct.pack_into(">H", fixed, 12, answer.sense[1])
            sense = struct.pack(">H", 18) + bytes(fixed)
        elif header[1] & 0x40 and len(data) < length:
            head[1] |= 0x02
            struct.pack_into(">I", head, 44, length - len(data))
        self._number(head)
        struct.pack_into(">I", head, 36, -(-len(data) // self.receive))
        self._put(head, sense)

    def _send(
        self, kind: int, asked: bytes, flags: int, data: bytes = b"", at20: int | None = None
    ) -> None:
        head = bytearray(48)
        head[0], head[1] = kind, flags
        head[16:20] = asked[16:20]
        if at20 is not None:
            struct.pack_into(">I", head, 20, at20)
        self._number(head)
        self._put(head, data)

    def _number(self, head: bytearray, *, spend: bool = True) -> None:
        most = (self.expected + _WINDOW) & 0xFFFFFFFF
        struct.pack_into(">III", head, 24, self.status, self.expected, most)
        if spend:
            self.status = (self.status + 1) & 0xFFFFFFFF

    def _put(self, head: bytearray, data: bytes) -> None:
        head[5:8] = len(data).to_bytes(3, "big")
        self.socket.sendall(bytes(head) + data + bytes(-len(data) % 4))

    def _take(self) -> tuple[bytes, bytes]:
        header = self._exactly(48)
        self._exactly(header[4] * 4)
        length = int.from_bytes(header[5:8], "big")
        data = self._exactly(length)
        self._exactly(-length % 4)
        return header, data

    def _exactly(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            piece = self.socket.recv(min(length - len(found), 1 << 20))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)


def _keys(data: bytes) -> dict[str, str]:
    pairs = (line.partition("=") for line in data.decode().split("\0") if line)
    return {key: value for key, _, value in pairs}


def _binary(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def _chap(number: int, secret: str, challenge: bytes) -> bytes:
    return hashlib.md5(bytes([number]) + secret.encode() + challenge).digest()
