"""The NBD server and clients that do not play by the rules."""

import os
import random
import socket
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.model.errors import RestoreTargetError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.nbd.contexts import changed_contexts
from atoll.nbd.exports import Export
from atoll.nbd.listening import UnixAddress
from atoll.nbd.server import NbdServer
from nbd_client import (
    CACHE,
    DF,
    DISC,
    FLUSH,
    INVALID,
    POLICY,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    UNKNOWN,
    UNSUP,
    WRITE,
    ZEROES,
    BareClient,
    error_of,
    meta_query,
)

MIB = 1 << 20
SIZE = 8 * MIB + 512
HOLE = Extent(2 * MIB, MIB)
SMALL_HOLE = Extent(4 * MIB, 4096)
BAD = 5 * MIB + 4096


@pytest.fixture(scope="module")
def content() -> bytes:
    data = bytearray(random.Random(9).randbytes(SIZE))
    for hole in (HOLE, SMALL_HOLE):
        data[hole.offset : hole.end] = bytes(hole.length)
    return bytes(data)


class Disk:
    """In memory, with holes; `failing` bytes raise."""

    def __init__(self, data: bytes, failing: int = -1) -> None:
        self._data = data
        self._failing = failing

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        if offset <= self._failing < offset + length:
            raise StorageUnreachableError("The repository went away; try again.")
        return self._data[offset : offset + length]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        for extent in extents:
            yield extent.offset, self.read(*extent)

    def holes(self) -> list[Extent]:
        return [HOLE, SMALL_HOLE]

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def server(content: bytes, place: Path) -> Iterator[NbdServer]:
    changed = changed_contexts("monday", SIZE, [Extent(MIB, 65536)])
    with NbdServer([Export("disk", Disk(content), "A disk", changed)], UnixAddress(place)) as it:
        yield it


@pytest.fixture
def failing(content: bytes, place: Path) -> Iterator[NbdServer]:
    with NbdServer([Export("disk", Disk(content, BAD))], UnixAddress(place)) as it:
        yield it


@pytest.mark.usefixtures("server")
def test_many_clients_at_once(content: bytes, place: Path) -> None:
    wrong: list[object] = []

    def client(seed: int) -> None:
        rnd = random.Random(seed)
        one = BareClient(place)
        one.attach()
        for _ in range(50):
            length = rnd.randrange(1, 200_000)
            offset = rnd.randrange(SIZE - length)
            if one.simple(READ, offset, length) or one.exactly(length) != content[offset:][:length]:
                wrong.append((seed, offset, length))
        one.socket.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.parametrize("structured", [False, True])
def test_many_requests_in_flight_of_one_client(
    content: bytes, place: Path, structured: bool
) -> None:
    """Of a reader that takes its time, so that several threads answer and out of order."""
    rnd = random.Random(5)

    class Slow(Disk):
        def read(self, offset: int, length: int) -> bytes:
            threading.Event().wait(0.001 * rnd.random())
            return super().read(offset, length)

    asked = {}
    for cookie in range(300):
        offset = rnd.randrange(SIZE - 1)
        asked[cookie] = offset, rnd.randrange(1, min(SIZE - offset, 40_000) + 1)
    with NbdServer([Export("disk", Slow(content))], UnixAddress(place)):
        client = BareClient(place)
        if structured:
            client.go()
        else:
            client.attach()
        requests = b"".join(
            struct.pack(">IHHQQI", 0x25609513, 0, READ, cookie, *place_asked)
            for cookie, place_asked in asked.items()
        )
        asking = threading.Thread(target=client.socket.sendall, args=(requests,), daemon=True)
        asking.start()
        got = {cookie: bytearray(length) for cookie, (_, length) in asked.items()}
        open_ones = dict(asked)
        order = []
        while open_ones:
            if structured:
                _, flags, kind, cookie, size = struct.unpack(">IHHQI", client.exactly(20))
                (at,) = struct.unpack(">Q", client.exactly(8))
                if kind == 1:
                    body = client.exactly(size - 8)
                else:
                    body = bytes(int.from_bytes(client.exactly(4), "big"))
                at -= asked[cookie][0]
                got[cookie][at : at + len(body)] = body
            else:
                _, error, cookie = struct.unpack(">IIQ", client.exactly(16))
                assert error == 0
                got[cookie][:], flags = client.exactly(asked[cookie][1]), 1
            if flags & 1:
                del open_ones[cookie]
                order.append(cookie)
        asking.join()
    for cookie, (offset, length) in asked.items():
        assert got[cookie] == content[offset : offset + length]
    assert order != sorted(order)


@pytest.mark.usefixtures("server")
def test_options(place: Path) -> None:
    client = BareClient(place)
    client.option(3)
    assert client.answers() == [(2, b"\0\0\0\4diskA disk"), (1, b"")]
    client.option(3, b"x")
    assert client.answer()[0] == INVALID
    client.option(5)
    assert client.answer()[0] == POLICY
    client.option(11)
    assert client.answer()[0] == UNSUP
    for data in (b"", b"\0\0\0\xff", b"\xff\xff\xff\xffdisk\0\0", b"\0\0\0\4disk\0\5\0\0"):
        client.option(7, data)
        assert client.answer()[0] == INVALID
    client.option(6, b"\0\0\0\5other\0\0")
    assert client.answer()[0] == UNKNOWN
    client.option(6, b"\0\0\0\4disk\0\2\0\1\0\2")
    infos = {info[:2]: info[2:] for kind, info in client.answers() if kind == 3}
    assert infos[b"\0\1"] == b"disk"
    assert infos[b"\0\2"] == b"A disk"
    assert struct.unpack(">III", infos[b"\0\3"]) == (1, MIB, 32 * MIB)
    client.option(7, b"\0\0\0\0\0\0")
    assert client.answers()[0][1][:10] == struct.pack(">HQ", 0, SIZE)
    assert client.simple(READ, 0, 512) == 0
    client.exactly(512)
    aborting = BareClient(place)
    aborting.option(2)
    assert aborting.answer() == (1, b"")
    assert aborting.closed()
    old = BareClient(place, flags=1)
    old.option(1, b"")
    assert len(old.exactly(134)) == 134


@pytest.mark.usefixtures("server")
def test_contexts_are_listed_and_chosen_by_name(place: Path) -> None:
    everything = [b"base:allocation", b"atoll:changed", b"qemu:dirty-bitmap:monday"]
    client = BareClient(place)
    client.option(10, meta_query(b"disk", b"base:allocation"))
    assert client.answer()[0] == INVALID  # structured replies come first
    client.option(8)
    assert client.answer()[0] == 1

    def found(option: int, *queries: bytes) -> list[bytes]:
        client.option(option, meta_query(b"disk", *queries))
        replies = client.answers()
        assert replies[-1] == (1, b"")
        return [data[4:] for kind, data in replies if kind == 4]

    assert found(9) == everything
    assert found(9, b"base:", b"qemu:dirty-bitmap:") == [everything[0], everything[2]]
    assert found(9, b"x-other:", b"base:nothing", b"atoll:changed") == [everything[1]]
    assert found(10) == []
    assert found(10, b"base:", b"qemu:") == []
    assert found(10, b"atoll:changed", b"atoll:changed", b"y:z") == [everything[1]]
    for broken in (meta_query(b"disk", b"a:b")[:-1], meta_query(b"disk") + b"x", b"\0\0\0\1"):
        client.option(10, broken)
        assert client.answer()[0] == INVALID
    # What was chosen before is void after a choice that failed.
    client.option(7, b"\0\0\0\4disk\0\0")
    client.answers()
    assert error_of(client.chunks(STATUS, 0, 512)[0])[0] == 22


@pytest.mark.usefixtures("server")
def test_contexts_of_another_export_count_for_nothing(content: bytes, tmp_path: Path) -> None:
    disks = [Export(name, Disk(content)) for name in ("a", "b")]
    with NbdServer(disks, UnixAddress(tmp_path / "two")):
        client = BareClient(tmp_path / "two")
        client.option(8)
        client.answers()
        client.option(10, meta_query(b"a", b"base:allocation"))
        client.answers()
        client.option(7, b"\0\0\0\0\0\0")  # of several, none is the default
        assert client.answers()[-1][0] == UNKNOWN
        client.option(7, b"\0\0\0\1b\0\0")
        client.answers()
        assert error_of(client.chunks(STATUS, 0, 512)[0])[0] == 22


@pytest.mark.usefixtures("server")
def test_structured_reads(content: bytes, place: Path) -> None:
    client = BareClient(place)
    client.go()
    [whole] = client.chunks(READ, 512, 4096)
    assert whole.payload == struct.pack(">Q", 512) + content[512 : 512 + 4096]
    [hole] = client.chunks(READ, HOLE.offset, HOLE.length)
    assert (hole.kind, hole.payload) == (2, struct.pack(">QI", *HOLE))
    mixed = client.chunks(READ, HOLE.offset - 4096, HOLE.length + 3 * MIB)
    assert [chunk.kind for chunk in mixed] == [1, 2, 1, 1, 1]  # a small hole goes as its zeros
    got = b"".join(chunk.payload[8:] if chunk.kind == 1 else bytes(HOLE.length) for chunk in mixed)
    assert got == content[HOLE.offset - 4096 :][: len(got)]
    for offset, length in ((HOLE.offset - 4096, 8192), (0, 5 * MIB)):
        first, *rest = client.chunks(READ, offset, length, DF)
        assert first.kind == 1
        assert first.payload == struct.pack(">Q", offset) + content[offset : offset + length]
        assert [chunk.kind for chunk in rest] == ([] if length <= MIB else [0])
    [hole] = client.chunks(READ, HOLE.offset, 65536, DF)
    assert hole.kind == 2
    assert [chunk.kind for chunk in client.chunks(READ, 0, 0)] == [0]


@pytest.mark.usefixtures("server")
def test_block_status(place: Path) -> None:
    client = BareClient(place)
    client.go(b"disk", b"base:allocation", b"qemu:dirty-bitmap:monday")

    def status(offset: int, length: int, flags: int = 0) -> list[list[tuple[int, int]]]:
        return [
            [struct.unpack_from(">II", chunk.payload, at) for at in range(4, len(chunk.payload), 8)]
            for chunk in client.chunks(STATUS, offset, length, flags)
        ]

    allocation, changed = status(0, SIZE)
    assert allocation == [
        (2 * MIB, 0), (MIB, 3), (MIB, 0), (4096, 3), (SIZE - 4 * MIB - 4096, 0)
    ]  # fmt: skip
    assert changed == [(MIB, 0), (65536, 1), (SIZE - MIB - 65536, 0)]
    assert status(512, 1024) == [[(2 * MIB - 512, 0)], [(MIB - 512, 0)]]
    assert status(512, 1024, REQ_ONE) == [[(1024, 0)], [(1024, 0)]]
    for offset, length in ((0, 0), (SIZE - 10, 11), (SIZE, 1)):
        assert error_of(client.chunks(STATUS, offset, length)[0])[0] == 22


@pytest.mark.usefixtures("server")
def test_requests_out_of_bounds_and_writes_are_refused(content: bytes, place: Path) -> None:
    client = BareClient(place)
    assert client.attach() == SIZE
    assert client.simple(READ, SIZE - 10, 11) == 22
    assert client.simple(READ, (1 << 64) - 1, 1) == 22
    assert client.simple(READ, 0, 0xFFFFFFFF) == 22
    assert client.simple(WRITE, 0, 512, bytes(512)) == 1
    assert client.simple(TRIM, 0, 512) == 1
    assert client.simple(ZEROES, 0, 512) == 1
    assert client.simple(FLUSH) == 0
    assert client.simple(CACHE, 0, MIB) == 0
    assert client.simple(CACHE, SIZE, 1) == 22
    assert client.simple(STATUS, 0, 512) == 22
    assert client.simple(99) == 22
    assert client.simple(READ) == 0
    assert client.simple(READ, SIZE - 10, 10) == 0
    assert client.exactly(10) == content[-10:]
    modern = BareClient(place)
    modern.go()
    for request in ((READ, SIZE - 10, 11), (READ, 0, 512, 1), (READ, 0, 512, REQ_ONE), (99,)):
        assert error_of(modern.chunks(*request)[0])[0] == 22
    assert error_of(modern.chunks(TRIM, 0, 512)[0])[0] == 1
    assert [chunk.kind for chunk in modern.chunks(CACHE, 0, 512)] == [0]
    modern.send(DISC)
    assert modern.closed()


def test_more_than_the_payload_at_once(place: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(64 * MIB)
    with NbdServer([Export("disk", FileReader(big))], UnixAddress(place)):
        client = BareClient(place)
        client.attach()
        assert client.simple(READ, 0, 33 * MIB) == 22
        modern = BareClient(place)
        modern.go()
        assert error_of(modern.chunks(READ, 0, 33 * MIB)[0])[0] == 75


def test_a_read_error_is_an_io_error_of_that_range_and_is_kept(
    failing: NbdServer, content: bytes, place: Path
) -> None:
    client = BareClient(place)
    client.attach()
    assert client.simple(READ, BAD, 512) == 5
    assert client.simple(READ, 0, 512) == 0
    client.exactly(512)
    modern = BareClient(place)
    modern.go()
    *data, failed = modern.chunks(READ, 4 * MIB, 3 * MIB)
    assert error_of(failed) == (5, "The repository went away; try again.", 5 * MIB)
    assert [chunk.payload[8:] for chunk in data] == [content[4 * MIB : 5 * MIB]]
    # Unfragmented: the chunk is completed, and then told to be worth nothing from there on.
    [whole, failed] = modern.chunks(READ, 4 * MIB, 3 * MIB, DF)
    assert whole.payload[8:] == content[4 * MIB : 5 * MIB] + bytes(2 * MIB)
    assert error_of(failed)[::2] == (5, 5 * MIB)
    [failed] = modern.chunks(READ, BAD - 512, 1024, DF)
    assert error_of(failed)[::2] == (5, BAD - 512)
    assert len(modern.chunks(READ, 0, 512)) == 1
    # With a simple reply half out there is nothing left to say.
    client.send(READ, 4 * MIB, 3 * MIB)
    assert client.exactly(16 + MIB)[16:] == content[4 * MIB : 5 * MIB]
    assert client.closed()
    assert failing.failure_count == 5
    assert {(kept.export, kept.offset, str(kept.error)) for kept in failing.failures} == {
        ("disk", at, "The repository went away; try again.") for at in (BAD, 5 * MIB, BAD - 512)
    }


def test_a_reader_that_gives_too_little_is_an_error(content: bytes, place: Path) -> None:
    class Short(Disk):
        def read(self, offset: int, length: int) -> bytes:
            return super().read(offset, length)[:-1]

    with NbdServer([Export("disk", Short(content))], UnixAddress(place)) as server:
        client = BareClient(place)
        client.attach()
        assert client.simple(READ, 0, 512) == 5
    assert "511 of 512 bytes" in str(server.failures[0].error)


def test_a_reader_without_a_map_of_its_holes_is_read_whole(content: bytes, place: Path) -> None:
    class Mapless(Disk):
        def holes(self) -> list[Extent]:
            raise StorageUnreachableError("A page is gone.")

    with NbdServer([Export("disk", Mapless(content))], UnixAddress(place)) as server:
        client = BareClient(place)
        client.go(b"disk", b"base:allocation")
        [data] = client.chunks(READ, HOLE.offset, 4096)
        assert data.payload[8:] == bytes(4096)
        assert client.chunks(STATUS, 0, SIZE)[0].payload[4:] == struct.pack(">II", SIZE, 0)
    assert [str(kept.error) for kept in server.failures] == ["A page is gone."]


@pytest.mark.usefixtures("server")
def test_garbage_disturbs_nobody(content: bytes, place: Path) -> None:
    """Wherever it comes: in the handshake, in an option, in transmission."""
    rnd = random.Random(1)
    good = BareClient(place)
    good.attach()
    for number in range(120):
        bad = BareClient(place, flags=rnd.choice([0, 1, 3, 3, 3, 0xFFFFFFFF]))
        noise = rnd.randbytes(rnd.randrange(1, 300))
        try:
            if number % 4 == 1:
                bad.attach()
            elif number % 4 == 2:
                bad.option(8)
                bad.option(rnd.randrange(12), noise)
            elif number % 4 == 3:
                bad.go()
                for _ in range(20):
                    fields = [rnd.randrange(1 << bits) for bits in (4, 4, 64)]
                    place_asked = rnd.randrange(2 * SIZE), rnd.randrange(1 << 20)
                    if fields[1] != WRITE:
                        header = struct.pack(">IHHQQI", 0x25609513, *fields, *place_asked)
                        bad.socket.sendall(header)
            bad.socket.sendall(noise)
            bad.socket.shutdown(socket.SHUT_WR)
            while bad.socket.recv(65536):
                pass
        except (EOFError, OSError):
            pass  # being thrown out at any moment is the answer to garbage
        bad.socket.close()
    idle = [BareClient(place) for _ in range(5)]
    assert good.simple(READ, 0, 512) == 0
    assert good.exactly(512) == content[:512]
    for client in idle:
        client.attach()


@pytest.mark.usefixtures("server")
def test_a_client_that_stops_listening_holds_up_nobody(content: bytes, place: Path) -> None:
    for structured in (False, True):
        deaf = BareClient(place)
        if structured:
            deaf.go()
        else:
            deaf.attach()
        deaf.socket.settimeout(1)
        try:
            while True:  # until neither side takes any more
                deaf.send(READ, 0, SIZE)
        except TimeoutError:
            pass
    other = BareClient(place)
    other.attach()
    for _ in range(20):
        assert other.simple(READ, 0, MIB) == 0
        assert other.exactly(MIB) == content[:MIB]
    # leaving the block ends both


def test_the_handshake_has_an_end_and_idling_after_it_has_none(
    content: bytes, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.nbd.server._HANDSHAKE_SECONDS", 2.0)
    with NbdServer([Export("disk", Disk(content))], UnixAddress(place)):
        idle = BareClient(place)
        idle.go()
        silent, trickling = BareClient(place), BareClient(place)
        with pytest.raises((EOFError, OSError)):
            while True:
                trickling.option(99)
                trickling.answer()
        assert silent.closed()
        [data] = idle.chunks(READ, 0, 512)
        assert data.payload[8:] == content[:512]


def test_one_client_too_many_is_hung_up_on(content: bytes, place: Path) -> None:
    with NbdServer([Export("disk", Disk(content))], UnixAddress(place), clients=2):
        first, second = BareClient(place), BareClient(place)
        third = socket.socket(socket.AF_UNIX)
        third.settimeout(20)
        third.connect(str(place))
        assert third.recv(1) == b""
        first.option(2)
        assert first.answer()[0] == 1
        assert first.closed()
        second.attach()
        while True:  # its place is free once its thread has ended
            try:
                BareClient(place).attach()
            except (EOFError, ConnectionError):
                continue
            break


def test_the_end_of_the_server_ends_its_clients(content: bytes, place: Path) -> None:
    with NbdServer([Export("disk", Disk(content))], UnixAddress(place)):
        clients = [BareClient(place) for _ in range(3)]
        clients[0].attach()
        clients[1].go()
    assert all(client.closed() for client in clients)
    assert not place.exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nbd")]


def test_the_place_of_the_socket(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"

    def server(where: Path) -> NbdServer:
        return NbdServer([Export("disk", Disk(content))], UnixAddress(where))

    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as after a kill: the file is there, nobody listens
    with server(path) as first:
        assert first.uri("disk") == f"nbd+unix:///disk?socket={path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(RestoreTargetError, match="No NBD socket"), server(path):
            pass
        BareClient(path).attach()
    path.write_text("a file")
    with pytest.raises(RestoreTargetError, match="No NBD socket"), server(path):
        pass
    assert path.read_text() == "a file"
    with pytest.raises(RestoreTargetError, match="shorter"), server(tmp_path / ("x" * 150)):
        pass
    assert os.listdir(tmp_path) == ["nbd.sock"]


def test_exports_that_the_protocol_cannot_carry(content: bytes, place: Path) -> None:
    disk = Disk(content)
    with pytest.raises(ValueError, match="cannot be sent"):
        Export("x" * 4097, disk)
    with pytest.raises(ValueError, match="another size"):
        Export("disk", disk, contexts=changed_contexts("m", SIZE - 1, []))
    with pytest.raises(ValueError, match="one name"):
        Export("disk", disk, contexts=changed_contexts("m", SIZE, []) * 2)
    with pytest.raises(ValueError, match="same name"):
        NbdServer([Export("disk", disk), Export("disk", disk)], UnixAddress(place))
