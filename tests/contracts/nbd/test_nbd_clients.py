"""What libnbd's and QEMU's own programs make of the NBD server."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.model.errors import ConfigurationError, RestoreTargetError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.nbd.contexts import changed_contexts
from atoll.nbd.exports import Export
from atoll.nbd.listening import Address, TcpAddress, TlsFiles, UnixAddress
from atoll.nbd.server import NbdServer
from nbd_client import TLS_REQD, BareClient, run
from nbd_trust import make_certificates

MIB = 1 << 20
SIZE = 24 * MIB + 512
DATA = [Extent(0, 3 * MIB), Extent(8 * MIB, 65536), Extent(20 * MIB, 4 * MIB + 512)]
CHANGED = [Extent(MIB, 65536), Extent(5 * MIB, 4096), Extent(24 * MIB, 512)]
"""Among them one written where there was a hole."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nbd") / "old.img"
    rnd = random.Random(9)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for extent in DATA:
            file.seek(extent.offset)
            file.write(rnd.randbytes(extent.length))
    return path


@pytest.fixture(scope="module")
def new(old: Path) -> Path:
    path = old.with_name("new.img")
    rnd = random.Random(10)
    assert run("cp", "--sparse=always", old, path).returncode == 0
    with path.open("r+b") as file:
        for extent in CHANGED:
            file.seek(extent.offset)
            file.write(rnd.randbytes(extent.length))
    return path


def unix(place: Path) -> Address:
    return UnixAddress(place / "nbd.sock")


def tcp(_: Path) -> Address:
    return TcpAddress(port=0)


@pytest.fixture(params=[unix, tcp])
def served(
    request: pytest.FixtureRequest, old: Path, new: Path, tmp_path: Path
) -> Iterator[NbdServer]:
    """Two disks: `db1/disk1` changed since Monday, `db1/disk2` is as it was then."""
    where: Callable[[Path], Address] = request.param
    exports = [
        Export("db1/disk1", FileReader(new), "Tuesday", changed_contexts("monday", SIZE, CHANGED)),
        Export("db1/disk2", FileReader(old), "Monday"),
    ]
    with NbdServer(exports, where(tmp_path)) as server:
        yield server
    assert server.failures == []


def test_nbdinfo_lists_and_describes(served: NbdServer) -> None:
    listed = run("nbdinfo", "--list", "--json", served.uri(""))
    assert listed.returncode == 0, listed.stderr
    exports = {each["export-name"]: each for each in json.loads(listed.stdout)["exports"]}
    assert list(exports) == ["db1/disk1", "db1/disk2"]
    first, second = exports.values()
    assert (first["description"], first["export-size"]) == ("Tuesday", SIZE)
    assert first["contexts"] == ["base:allocation", "atoll:changed", "qemu:dirty-bitmap:monday"]
    assert second["contexts"] == ["base:allocation"]
    for can in ("is_read_only", "can_multi_conn", "can_df", "can_cache"):
        assert first[can] is True
    assert first["block_size_minimum"] == 1


def mapped(uri: str, *options: str) -> list[Extent]:
    """What nbdinfo's map calls other than state 0."""
    done = run("nbdinfo", *options, "--json", uri)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert sum(row["length"] for row in rows) == SIZE
    return [Extent(row["offset"], row["length"]) for row in rows if row["type"]]


def test_nbdinfo_maps_holes_and_changes(served: NbdServer) -> None:
    disk1, disk2 = served.uri("db1/disk1"), served.uri("db1/disk2")
    assert mapped(disk2, "--map") == [
        Extent(3 * MIB, 5 * MIB),
        Extent(8 * MIB + 65536, 12 * MIB - 65536),
    ]
    assert mapped(disk1, "--map=qemu:dirty-bitmap:monday") == CHANGED
    assert mapped(disk1, "--map=atoll:changed") == CHANGED
    assert run("nbdinfo", "--map=atoll:changed", disk2).returncode != 0
    totals = run("nbdinfo", "--map=qemu:dirty-bitmap:monday", "--totals", disk1).stdout
    assert [line.split()[0] for line in totals.splitlines() if line.endswith("dirty")] == ["70144"]


def test_nbdcopy_copies_with_holes(served: NbdServer, new: Path, tmp_path: Path) -> None:
    for number, options in enumerate([[], ["--no-extents"], ["--synchronous"]]):
        copy = tmp_path / f"copy{number}"
        done = run("nbdcopy", *options, served.uri("db1/disk1"), copy)
        assert done.returncode == 0, done.stderr
        assert copy.read_bytes() == new.read_bytes()
    assert (tmp_path / "copy0").stat().st_blocks * 512 < SIZE // 2


def test_qemu_img_reads_maps_and_compares(served: NbdServer, new: Path, tmp_path: Path) -> None:
    uri = served.uri("db1/disk1")
    info = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", uri).stdout)
    assert info["virtual-size"] == SIZE
    rows = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri).stdout)
    zero = [Extent(row["start"], row["length"]) for row in rows if row["zero"]]
    assert zero == [
        Extent(3 * MIB, 2 * MIB),
        Extent(5 * MIB + 4096, 3 * MIB - 4096),
        Extent(8 * MIB + 65536, 12 * MIB - 65536),
    ]
    copied = run(
        "qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", 8, "-W", uri, tmp_path / "o"
    )
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "o").read_bytes() == new.read_bytes()
    assert run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, new).returncode == 0
    other = served.uri("db1/disk2")
    assert run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, other).returncode == 1
    assert run("qemu-img", "info", "-f", "raw", served.uri("db1/disk3")).returncode != 0


def test_qemu_io_cannot_write_and_an_overlay_can_be_put_on_it(
    served: NbdServer, new: Path, tmp_path: Path
) -> None:
    before = new.read_bytes()
    uri = served.uri("db1/disk1")
    assert run("qemu-io", "-f", "raw", "-c", "write 0 4k", uri).returncode != 0
    overlay = tmp_path / "overlay.qcow2"
    made = run("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", uri, overlay)
    assert made.returncode == 0, made.stderr
    done = run("qemu-io", "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", overlay)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout
    assert new.read_bytes() == before


def test_an_increment_by_the_dirty_bitmap_makes_the_old_image_new(
    served: NbdServer, old: Path, new: Path, tmp_path: Path
) -> None:
    """As backup software does it: ask what is dirty, read that, write it over the last backup."""
    uri = served.uri("db1/disk1")
    backup = tmp_path / "backup.img"
    backup.write_bytes(old.read_bytes())
    for offset, length in mapped(uri, "--map=qemu:dirty-bitmap:monday"):
        part = f"driver=raw,offset={offset},size={length}"
        done = run(
            *("qemu-img", "convert", "-n", "--image-opts", "--target-image-opts"),
            f"{part},file.driver=nbd,{server_of(served)},file.export=db1/disk1",
            f"{part},file.driver=file,file.filename={backup}",
        )
        assert done.returncode == 0, done.stderr
    assert backup.read_bytes() == new.read_bytes()


def test_qemu_pulls_an_increment_by_itself(
    served: NbdServer, old: Path, new: Path, tmp_path: Path
) -> None:
    """QEMU shows a bitmap of the server as allocation (`x-dirty-bitmap`): what is clean is 'data'."""
    source = (
        f"driver=nbd,{server_of(served).replace('file.', '')},export=db1/disk1,"
        "x-dirty-bitmap=qemu:dirty-bitmap:monday"
    )
    done = run("qemu-img", "map", "--output=json", "--image-opts", source)
    assert done.returncode == 0, done.stderr
    dirty = [
        Extent(row["start"], row["length"]) for row in json.loads(done.stdout) if not row["data"]
    ]
    assert dirty == CHANGED


def server_of(server: NbdServer) -> str:
    """QEMU's options for the server's address."""
    uri = server.uri("")
    if uri.startswith("nbd+unix"):
        return f"file.server.type=unix,file.server.path={uri.partition('socket=')[2]}"
    port = uri.rstrip("/").rpartition(":")[2]
    return f"file.server.type=inet,file.server.host=127.0.0.1,file.server.port={port}"


def test_any_name_is_found_by_its_address(new: Path, tmp_path: Path) -> None:
    names = ["Büro 1/disk1", "50%/disk1", "a?b#c&d/disk1", "x" * 4096]
    exports = [Export(name, FileReader(new)) for name in names]
    with NbdServer(exports, UnixAddress(tmp_path / "a socket")) as server:
        for name in names:
            found = run("nbdinfo", "--json", server.uri(name))
            assert json.loads(found.stdout)["exports"][0]["export-name"] == name
            assert run("qemu-img", "info", "-f", "raw", server.uri(name)).returncode == 0


def test_an_unreadable_range_is_an_error_for_the_client_and_the_rest_is_right(
    new: Path, tmp_path: Path
) -> None:
    class Failing(FileReader):
        def read(self, offset: int, length: int) -> bytes:
            if offset <= 8 * MIB < offset + length:
                raise StorageUnreachableError("The repository went away; try again.")
            return super().read(offset, length)

    with NbdServer([Export("disk", Failing(new))], UnixAddress(tmp_path / "s")) as server:
        uri = server.uri("disk")
        assert run("nbdcopy", uri, tmp_path / "copy").returncode != 0
        failed = run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "o")
        assert "Input/output error" in failed.stderr
        reading = ("qemu-io", "-r", "-f", "raw", "-c")
        assert "Input/output error" in run(*reading, "read 8M 4k", uri).stdout
        assert run(*reading, "read 0 3M", uri).returncode == 0
    assert server.failure_count >= 3


SERVE = """
import os, sys, time
from pathlib import Path
from atoll.blocks.readers import FileReader
from atoll.nbd.exports import Export
from atoll.nbd.listening import UnixAddress
from atoll.nbd.server import NbdServer
class Stopping(FileReader):
    def read(self, offset, length):
        if offset >= 20 << 20:
            os.write(1, b"there\\n")  # whole, in however many threads
            time.sleep(600)
        return super().read(offset, length)
with NbdServer([Export("disk", Stopping(Path(sys.argv[1])))], UnixAddress(Path(sys.argv[2]))):
    print("serving", flush=True)
    time.sleep(600)
"""


def test_a_killed_server_is_an_error_for_its_client(new: Path, tmp_path: Path) -> None:
    place = tmp_path / "nbd.sock"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(new), str(place)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "serving\n"
        copy = subprocess.Popen(
            ["nbdcopy", f"nbd+unix:///disk?socket={place}", str(tmp_path / "copy")],
            stderr=subprocess.PIPE,
        )
        assert server.stdout.readline() == "there\n"
        os.kill(server.pid, signal.SIGKILL)
        copy.communicate(timeout=60)
        assert copy.returncode != 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    with NbdServer([Export("disk", FileReader(new))], UnixAddress(place)) as again:
        assert run("nbdinfo", again.uri("disk")).returncode == 0


def test_tls_with_both_certificates(new: Path, tmp_path: Path) -> None:
    class Slow(FileReader):
        """So that several threads of one connection are at work in its TLS session."""

        def read(self, offset: int, length: int) -> bytes:
            time.sleep(0.001)
            return super().read(offset, length)

    where = make_certificates(tmp_path / "pki")
    address = TcpAddress(port=0, tls=TlsFiles.of(where))
    with NbdServer([Export("disk", Slow(new))], address) as server:
        uri = server.uri("disk")
        port = int(uri.split(":")[2].split("/")[0])
        assert uri == f"nbds://127.0.0.1:{port}/disk"
        done = run("nbdcopy", f"{uri}?tls-certificates={where}", tmp_path / "copy")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "copy").read_bytes() == new.read_bytes()
        info = run("nbdinfo", f"{uri}?tls-certificates={where}")
        assert "with TLS, using structured" in info.stdout

        def qemu(credentials: str) -> subprocess.CompletedProcess[str]:
            return run(
                *("qemu-img", "compare", "--image-opts"),
                *("--object", f"tls-creds-x509,id=t,endpoint=client,dir={where},{credentials}"),
                f"driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,"
                f"file.server.port={port},file.export=disk,file.tls-creds=t",
                f"driver=raw,file.driver=file,file.filename={new}",
            )

        assert qemu("verify-peer=on").returncode == 0
        # Without TLS, and with TLS but a stranger's certificate, nothing is to be had.
        assert run("nbdinfo", uri.replace("nbds:", "nbd:")).returncode != 0
        bare = BareClient(port)
        for option in (3, 7, 8, 99):
            bare.option(option)
            assert bare.answer()[0] == TLS_REQD
        bare.option(1, b"disk")
        assert bare.closed()
        stranger = make_certificates(tmp_path / "stranger")
        (stranger / "ca-cert.pem").write_bytes((where / "ca-cert.pem").read_bytes())
        assert run("nbdinfo", f"{uri}?tls-certificates={stranger}").returncode != 0
        # What came in the clear behind the request to encrypt could be anyone's.
        early = BareClient(port)
        early.socket.sendall((b"IHAVEOPT" + bytes([0, 0, 0, 5]) + bytes(4)) + b"IHAVEOPT")
        assert early.answer()[0] == 1
        assert early.closed()
        assert qemu("verify-peer=on").returncode == 0


def test_tcp_without_tls_is_for_this_machine_only(new: Path, tmp_path: Path) -> None:
    export = Export("disk", FileReader(new))
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with (
            pytest.raises(ConfigurationError, match="without TLS would show these disks"),
            NbdServer([export], TcpAddress(host, 0)),
        ):
            pass
    with (
        pytest.raises(ConfigurationError, match="certificates for NBD cannot be used"),
        NbdServer([export], TcpAddress(port=0, tls=TlsFiles.of(tmp_path))),
    ):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RestoreTargetError, match=f"port {port}"),
            NbdServer([export], TcpAddress(port=port)),
        ):
            pass
    with NbdServer([export], TcpAddress("localhost", 0)) as server:
        assert run("nbdinfo", server.uri("disk")).returncode == 0
