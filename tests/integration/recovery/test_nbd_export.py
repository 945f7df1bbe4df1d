"""A disk served over NBD: read by QEMU, and by clients that do not play by the rules."""

import os
import random
import socket
import stat
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.model.errors import RestoreTargetError, StorageUnreachableError
from atoll.nbd.server import NbdExport

SIZE = (24 << 20) + 512


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nbd") / "disk.img"
    path.write_bytes(random.Random(9).randbytes(SIZE))
    return path


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


class Client:
    """A bare client, for what QEMU would never say."""

    def __init__(self, path: Path, flags: int = 3) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        assert self.exactly(16) == b"NBDMAGICIHAVEOPT"
        assert self.exactly(2) == b"\0\3"
        self.socket.sendall(struct.pack(">I", flags))

    def exactly(self, length: int) -> bytes:
        pieces = b""
        while len(pieces) < length:
            piece = self.socket.recv(length - len(pieces))
            if not piece:
                raise EOFError
            pieces += piece
        return pieces

    def option(self, number: int, data: bytes = b"") -> None:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

    def answer(self) -> tuple[int, bytes]:
        magic, _, kind, length = struct.unpack(">QIII", self.exactly(20))
        assert magic == 0x3E889045565A9
        return kind, self.exactly(length)

    def attach(self) -> int:
        self.option(1, b"disk")
        size, flags = struct.unpack(">QH", self.exactly(10))
        assert flags & 3 == 3
        return size

    def request(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"") -> int:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 77, offset, length) + data)
        magic, error, cookie = struct.unpack(">IIQ", self.exactly(16))
        assert (magic, cookie) == (0x67446698, 77)
        return error

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def test_qemu_reads_the_whole_disk(disk: Path, tmp_path: Path) -> None:
    with NbdExport(FileReader(disk), tmp_path / "nbd.sock") as uri:
        assert uri == f"nbd+unix:///disk?socket={tmp_path}/nbd.sock"
        assert stat.S_IMODE((tmp_path / "nbd.sock").stat().st_mode) == 0o600
        info = run("qemu-img", "info", "-f", "raw", uri)
        assert str(SIZE) in info.stdout, info.stderr
        copied = run(
            "qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", 8, "-W", uri, tmp_path / "o"
        )
        assert copied.returncode == 0, copied.stderr
        assert (tmp_path / "o").read_bytes() == disk.read_bytes()
        compared = run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disk)
        assert compared.returncode == 0, compared.stdout
        unknown = run("qemu-img", "info", "-f", "raw", uri.replace("/disk?", "/other?"))
        assert unknown.returncode != 0
    assert not (tmp_path / "nbd.sock").exists()


def test_qemu_can_put_an_overlay_on_it_and_cannot_write_to_it(disk: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    with NbdExport(FileReader(disk), tmp_path / "nbd.sock", "system") as uri:
        assert run("qemu-io", "-f", "raw", "-c", "write 0 4k", uri).returncode != 0
        overlay = tmp_path / "overlay.qcow2"
        made = run("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", uri, overlay)
        assert made.returncode == 0, made.stderr
        done = run("qemu-io", "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", overlay)
        assert done.returncode == 0, done.stdout
        assert "failed" not in done.stdout
    assert disk.read_bytes() == before


def test_many_clients_at_once(disk: Path, tmp_path: Path) -> None:
    content = disk.read_bytes()
    wrong: list[object] = []

    def client(seed: int) -> None:
        rnd = random.Random(seed)
        one = Client(tmp_path / "nbd.sock")
        one.attach()
        for _ in range(50):
            length = rnd.randrange(1, 200_000)
            offset = rnd.randrange(SIZE - length)
            if one.request(0, offset, length) or one.exactly(length) != content[offset:][:length]:
                wrong.append((seed, offset, length))
        one.socket.close()

    with NbdExport(FileReader(disk), tmp_path / "nbd.sock"):
        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_options(disk: Path, tmp_path: Path) -> None:
    with NbdExport(FileReader(disk), tmp_path / "nbd.sock"):
        client = Client(tmp_path / "nbd.sock")
        client.option(3)
        assert client.answer() == (2, b"\0\0\0\4disk")
        assert client.answer() == (1, b"")
        client.option(3, b"x")
        assert client.answer()[0] == 0x80000003
        client.option(5)
        assert client.answer()[0] == 0x80000001
        for data in (b"", b"\0\0\0\xff", b"\xff\xff\xff\xffdisk\0\0", b"\0\0\0\4disk\0\5\0\0"):
            client.option(7, data)
            assert client.answer()[0] == 0x80000003
        client.option(6, b"\0\0\0\5other\0\0")
        assert client.answer()[0] == 0x80000006
        client.option(7, b"\0\0\0\0\0\0")
        assert client.answer()[1][:10] == struct.pack(">HQ", 0, SIZE)
        assert client.answer()[0] == 3
        assert client.answer() == (1, b"")
        assert client.request(0, 0, 512) == 0
        client.exactly(512)
        aborting = Client(tmp_path / "nbd.sock")
        aborting.option(2)
        assert aborting.answer() == (1, b"")
        assert aborting.closed()
        old = Client(tmp_path / "nbd.sock", flags=1)
        old.option(1, b"")
        assert len(old.exactly(134)) == 134


def test_requests_out_of_bounds_and_writes_are_refused(disk: Path, tmp_path: Path) -> None:
    with NbdExport(FileReader(disk), tmp_path / "nbd.sock"):
        client = Client(tmp_path / "nbd.sock")
        assert client.attach() == SIZE
        assert client.request(0, SIZE - 10, 11) == 22
        assert client.request(0, (1 << 64) - 1, 1) == 22
        assert client.request(0, 0, 0xFFFFFFFF) == 22
        assert client.request(1, 0, 512, bytes(512)) == 1
        assert client.request(4, 0, 512) == 1
        assert client.request(6, 0, 512) == 1
        assert client.request(3) == 0
        assert client.request(99) == 22
        assert client.request(0, SIZE - 10, 10) == 0
        assert client.exactly(10) == disk.read_bytes()[-10:]


def test_garbage_disturbs_nobody(disk: Path, tmp_path: Path) -> None:
    rnd = random.Random(1)
    with NbdExport(FileReader(disk), tmp_path / "nbd.sock"):
        good = Client(tmp_path / "nbd.sock")
        good.attach()
        for number in range(60):
            bad = Client(tmp_path / "nbd.sock", flags=rnd.choice([0, 3, 0xFFFFFFFF]))
            try:
                if number % 3 == 0:
                    bad.attach()
                bad.socket.sendall(rnd.randbytes(rnd.randrange(1, 3000)))
                bad.socket.shutdown(socket.SHUT_WR)
                while bad.socket.recv(65536):
                    pass
            except (EOFError, OSError):
                pass  # being thrown out at any moment is the answer to garbage
            bad.socket.close()
        idle = [Client(tmp_path / "nbd.sock") for _ in range(5)]
        assert good.request(0, 0, 512) == 0
        assert good.exactly(512) == disk.read_bytes()[:512]
    assert all(client.closed() for client in [*idle, good])


def test_a_client_that_stops_listening_holds_up_nobody(disk: Path, tmp_path: Path) -> None:
    with NbdExport(FileReader(disk), tmp_path / "nbd.sock"):
        deaf = Client(tmp_path / "nbd.sock")
        deaf.attach()
        for _ in range(12):
            request = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 16 << 20)
            deaf.socket.sendall(request)
        other = Client(tmp_path / "nbd.sock")
        other.attach()
        assert other.request(0, 0, 512) == 0
        other.exactly(512)
    # leaving the block ended both


class Failing(FileReader):
    def read(self, offset: int, length: int) -> bytes:
        if offset == 4096:
            raise StorageUnreachableError("The repository went away; try again.")
        return super().read(offset, length)


def test_a_read_error_is_an_io_error_and_is_kept(disk: Path, tmp_path: Path) -> None:
    export = NbdExport(Failing(disk), tmp_path / "nbd.sock")
    with export:
        client = Client(tmp_path / "nbd.sock")
        client.attach()
        assert client.request(0, 4096, 512) == 5
        assert client.request(0, 0, 512) == 0
        client.exactly(512)
    assert [str(error) for error in export.read_errors] == ["The repository went away; try again."]


def test_the_place_of_the_socket(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as after a kill: the file is there, nobody listens
    with NbdExport(FileReader(disk), path):
        with (
            pytest.raises(RestoreTargetError, match="No NBD socket"),
            NbdExport(FileReader(disk), path),
        ):
            pass
        Client(path).attach()
    path.write_text("a file")
    with (
        pytest.raises(RestoreTargetError, match="No NBD socket"),
        NbdExport(FileReader(disk), path),
    ):
        pass
    assert path.read_text() == "a file"
    long = tmp_path / ("x" * 150)
    with pytest.raises(RestoreTargetError, match="shorter"), NbdExport(FileReader(disk), long):
        pass
    assert os.listdir(tmp_path) == ["nbd.sock"]
