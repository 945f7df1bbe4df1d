"""A parser that a hostile image has taken over can do nothing but compute and be stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.filesystems import session as session_module
from atoll.filesystems.interface import EntryKind
from atoll.filesystems.session import FileSystemSession, Limits, open_filesystem
from atoll.model.errors import StorageUnreachableError, UnsupportedFormatError

CAPTIVE = """
import ctypes, errno, json, mmap, os, socket, sys
sys.path.insert(0, {src!r})
from atoll.filesystems.jail import Confinement, lock_down
libc = ctypes.CDLL(None, use_errno=True)
held = os.open("/", os.O_RDONLY)
parent = os.getppid()
lock_down(Confinement(memory_bytes=512 << 20))

def raw(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

attempts = {{
    "open": lambda: open("/etc/passwd"),
    "open below a held directory": lambda: os.open("etc/passwd", os.O_RDONLY, dir_fd=held),
    "write a file": lambda: open("/tmp/evil", "w"),
    "connect": lambda: socket.create_connection(("127.0.0.1", 9)),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "fork": os.fork,
    "vfork": lambda: raw(58),
    "clone3": lambda: raw(435, 0, 0),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill the parent": lambda: os.kill(parent, 0),
    "ptrace the parent": lambda: raw(101, 16, parent, 0, 0),
    "read the parent's memory": lambda: raw(310, parent, 0, 0, 0, 0, 0),
    "raise its own limits": lambda: raw(302, 0, 0, b"\\xff" * 16, 0),
    "become root": lambda: raw(105, 0),
    "io_uring": lambda: raw(425, 8, b"\\0" * 120),
    "32-bit numbering": lambda: raw(0x40000000 | 2, b"/etc/passwd", 0, 0),
    "duplicate a descriptor": lambda: os.dup(1),
    "map a file": lambda: mmap.mmap(held, 4096),
    "1 GiB": lambda: bytearray(1 << 30),
}}
for name, attempt in attempts.items():
    try:
        attempt()
        outcome = "allowed"
    except BaseException as error:
        outcome = type(error).__name__
    os.write(1, (json.dumps([name, outcome]) + "\\n").encode())
"""


def outcomes(script: str) -> dict[str, str]:
    """What became of each attempt."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_nothing_is_in_reach() -> None:
    source = str(Path(session_module.__file__).parents[2])
    got = outcomes(CAPTIVE.format(src=source))
    assert got.pop("1 GiB") == "MemoryError"
    assert len(got) == 18
    assert {name for name, outcome in got.items() if outcome == "allowed"} == set()
    # refused by the filter, and not for some reason of the attempt's own
    filtered = {"open", "fork", "clone3", "exec", "io_uring", "unix socket", "become root"}
    assert {got[name] for name in filtered} == {"PermissionError"}


def test_without_the_jail_the_attempts_succeed() -> None:
    """The control: what the test above sees refused is refused by the jail."""
    source = str(Path(session_module.__file__).parents[2])
    script = CAPTIVE.format(src=source).replace(
        "lock_down(Confinement(memory_bytes=512 << 20))", ""
    )
    attempts = ('"fork"', '"vfork"', '"clone3"', '"exec"', '"ptrace', '"kill', '"raise')
    kept = [line for line in script.splitlines() if not line.strip().startswith(attempts)]
    got = outcomes("\n".join(kept))
    for name in ("open", "open below a held directory", "unix socket", "1 GiB"):
        assert got[name] == "allowed"


def test_an_orphan_in_an_endless_loop_ends_by_itself() -> None:
    source = str(Path(session_module.__file__).parents[2])
    script = f"""
import sys
sys.path.insert(0, {source!r})
from atoll.filesystems.jail import Confinement, allow_cpu, lock_down
lock_down(Confinement())
for _ in range(3):
    allow_cpu(0.2)
while True:
    pass
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert done.returncode == -signal.SIGPROF


HOSTILE = """
import json, os, struct, sys
def send(kind, payload=b""):
    data = struct.pack("<BI", kind, len(payload)) + payload
    while data:
        data = data[os.write(0, data):]
HELLO, BLOCKS, ENTRIES, DATA, FAULT, END, ERROR, PLACES = 3, 4, 5, 6, 7, 8, 9, 10
def places(*rows):
    row[2] = 4096
    send(ENTRIES, json.dumps([row]).encode())
    send(PLACES, b"".join(struct.pack("<3Q", *each) for each in rows))
send(HELLO, json.dumps(["ext4", "", "", "clean"]).encode())
row = ["/a", "file", 1, 420, 0, 0, 0, 0, 0, 1, 12, None, None, [], 0]
os.read(0, 65536)
"""
BEHAVIOURS = {
    "compute for ever": "while True: pass",
    "wait for ever": "os.read(0, 1); os.read(0, 1)",
    "end": "sys.exit(3)",
    "end in the middle of a frame": "os.write(0, b'\\x05\\xff')",
    "crash": "os.kill(os.getpid(), 11)",
    "ask for blocks for ever": (
        "while True:\n send(BLOCKS, struct.pack('<QI', 0, 512))\n os.read(0, 517)"
    ),
    "ask outside the image": "send(BLOCKS, struct.pack('<QI', 1 << 62, 512))",
    "ask for too much": "send(BLOCKS, struct.pack('<QI', 0, 0xffffffff))",
    "a huge frame": "os.write(0, struct.pack('<BI', ENTRIES, 0xffffffff))",
    "an unknown frame": "send(77)",
    "no JSON": "send(ENTRIES, b'\\xff\\x00')",
    "deep JSON": "send(ENTRIES, b'[' * 100000)",
    "huge number": "send(ENTRIES, b'[' + b'9' * 100000 + b']')",
    "not a list": "send(ENTRIES, b'{}')",
    "short row": "send(ENTRIES, json.dumps([row[:5]]).encode())",
    "dot-dot": "row[0] = '/../../etc/passwd'; send(ENTRIES, json.dumps([row]).encode())",
    "relative": "row[0] = 'etc/passwd'; send(ENTRIES, json.dumps([row]).encode())",
    "double slash": "row[0] = '//a'; send(ENTRIES, json.dumps([row]).encode())",
    "NUL": "row[0] = '/a\\0b'; send(ENTRIES, json.dumps([row]).encode())",
    "lone surrogate": "row[0] = '/\\ud800'; send(ENTRIES, json.dumps([row]).encode())",
    "negative size": "row[2] = -1; send(ENTRIES, json.dumps([row]).encode())",
    "true as a number": "row[2] = True; send(ENTRIES, json.dumps([row]).encode())",
    "mode beyond": "row[3] = 0o100644; send(ENTRIES, json.dumps([row]).encode())",
    "unknown kind": "row[1] = 'door'; send(ENTRIES, json.dumps([row]).encode())",
    "a list as kind": "row[1] = []; send(ENTRIES, json.dumps([row]).encode())",
    "short fault": "send(FAULT, json.dumps(['/a', 'x']).encode())",
    "a number in a fault": "send(FAULT, json.dumps(['/a', 'x', 0]).encode())",
    "bad hex": "row[13] = [['user.a', 'zz']]; send(ENTRIES, json.dumps([row]).encode())",
    "data first": "send(DATA, bytes(8) + b'x')",
    "data beyond the end": (
        "send(ENTRIES, json.dumps([row]).encode()); send(DATA, bytes(8) + b'xx')"
    ),
    "data twice": (
        "send(ENTRIES, json.dumps([row]).encode())\nfor _ in range(2): send(DATA, bytes(8) + b'x')"
    ),
    "endless entries": "while True: send(ENTRIES, json.dumps([row] * 100).encode())",
    "negative allocation": "row[14] = -1; send(ENTRIES, json.dumps([row]).encode())",
    "hello again": "send(HELLO, json.dumps(['ext4', '', '', 'clean']).encode())",
}


@pytest.mark.parametrize("behaviour", list(BEHAVIOURS))
def test_a_parser_taken_over_is_stopped(
    behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE + BEHAVIOURS[behaviour] + "\n")
    monkeypatch.setattr(session_module, "PARSER", (str(script),))
    limits = Limits(patience_seconds=1.5, entries=10_000, places=10_000)
    with FileSystemSession(FileReader(image), "ext4", limits) as session:
        process = session._process
        assert process is not None
        with pytest.raises(UnsupportedFormatError, match="restore the whole disk"):
            list(session.export("/"))
        assert process.returncode is not None, "the parser is still running"


LAYOUTS = {
    "places without a file": "send(PLACES, struct.pack('<3Q', 0, 1, 0))",
    "places of half a number": (
        "send(ENTRIES, json.dumps([row]).encode()); send(PLACES, bytes(25))"
    ),
    "places beyond the file": "places((0, 4097, 0))",
    "places that overflow": "places((0, (1 << 64) - 1, 8))",
    "places beyond the image": "places((0, 4096, (1 << 20) - 4095))",
    "places out of order": "places((2048, 1024, 0), (0, 1024, 0))",
    "places over each other": "places((0, 1024, 0), (1023, 1024, 0))",
    "an empty place": "places((0, 0, 0))",
    "endless places": (
        "row[2] = 1 << 40; send(ENTRIES, json.dumps([row]).encode()); at = 0\n"
        "while True: send(PLACES, b''.join(struct.pack('<3Q', at + n, 1, 0) for n in range(4096)));"
        " at += 4096"
    ),
}


@pytest.mark.parametrize("behaviour", list(LAYOUTS))
def test_an_impossible_layout_is_not_believed(
    behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE + LAYOUTS[behaviour] + "\nsend(END)\nos.read(0, 1)\n")
    monkeypatch.setattr(session_module, "PARSER", (str(script),))
    limits = Limits(patience_seconds=20, places=10_000)
    with FileSystemSession(FileReader(image), "ext4", limits) as session:
        with pytest.raises(UnsupportedFormatError, match=r"layout|no metadata|10000 pieces"):
            list(session.layout(12))
        assert not session.running


ROWS = """
HEAD = "<IBBBxHHIIIIIIIQQQqqqIII"
def entry(name=b"a", kind=1, known=3, mode=420, target=b"", places=(), xattrs=b"", size=4096,
          inode=12, allocated=0, seconds=0, nanos=0, extra=0):
    tail = name + target + b"".join(struct.pack("<3Q", *each) for each in places) + xattrs
    return struct.pack(HEAD, struct.calcsize(HEAD) + len(tail) + extra, kind, known, len(places),
        len(name), mode, len(target), len(xattrs), 1, 0, 0, 0, 0, inode, size, allocated,
        seconds, 0, 0, 0, nanos, 0) + tail
def xattr(name, value):
    return struct.pack("<HI", len(name), len(value)) + name + value
def rows(*entries):
    send(11, b"".join(entries))
"""
IMPOSSIBLE_ROWS = {
    "not even a head": "send(11, bytes(20))",
    "all zeros": "send(11, bytes(1000))",
    "a length beyond": "rows(entry(extra=1))",
    "a short length": "rows(entry(extra=-1), entry())",
    "no name": "rows(entry(name=b''))",
    "a long name": "rows(entry(name=b'x' * 766))",
    "dot-dot": "rows(entry(), entry(name=b'..'))",
    "a path": "rows(entry(name=b'etc/passwd'))",
    "NUL": "rows(entry(name=b'a\\0b'))",
    "an unknown kind": "rows(entry(kind=8))",
    "mode beyond": "rows(entry(mode=0o100644))",
    "a huge size": "rows(entry(size=1 << 63))",
    "a huge allocation": "rows(entry(allocated=1 << 63))",
    "no inode": "rows(entry(inode=0))",
    "the end of time": "rows(entry(seconds=1 << 50))",
    "too many nanoseconds": "rows(entry(nanos=10 ** 9))",
    "a symlink to nowhere": "rows(entry(kind=3))",
    "NUL in a symlink": "rows(entry(kind=3, target=b'a\\0b'))",
    "an endless symlink": "rows(entry(kind=3, target=b'a' * 65537))",
    "a file with a target": "rows(entry(target=b'a'))",
    "a directory with places": "rows(entry(kind=2, places=[(0, 1, 0)]))",
    "places not told of": "rows(entry(known=0, places=[(0, 1, 0)]))",
    "a place outside the file": "rows(entry(places=[(4096, 1, 0)]))",
    "a place outside the image": "rows(entry(places=[(0, 1, 1 << 20)]))",
    "a place that overflows": "rows(entry(places=[(0, (1 << 64) - 1, 8)]))",
    "places out of order": "rows(entry(places=[(9, 1, 0), (0, 1, 0)]))",
    "an empty place": "rows(entry(places=[(0, 0, 0)]))",
    "half an attribute": "rows(entry(xattrs=b'abc'))",
    "an attribute beyond": "rows(entry(xattrs=xattr(b'user.a', b'x')[:-1]))",
    "a nameless attribute": "rows(entry(xattrs=xattr(b'', b'x')))",
    "attributes not told of": "rows(entry(known=0, xattrs=xattr(b'user.a', b'x')))",
    "details of what is damaged": "rows(entry(kind=0, target=b'a'))",
    "rows for ever": "while True: rows(*[entry()] * 500)",
    "an entry of another kind": "send(ENTRIES, json.dumps([row]).encode())",
}


@pytest.mark.parametrize("behaviour", list(IMPOSSIBLE_ROWS))
def test_an_impossible_row_is_not_believed(
    behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE + ROWS + IMPOSSIBLE_ROWS[behaviour] + "\nsend(END)\nos.read(0, 1)\n")
    monkeypatch.setattr(session_module, "PARSER", (str(script),))
    limits = Limits(patience_seconds=20, entries=10_000)
    with FileSystemSession(FileReader(image), "ext4", limits) as session:
        with pytest.raises(UnsupportedFormatError, match="and was stopped"):
            list(session.children(2))
        assert not session.running


def test_a_possible_row_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    script = tmp_path / "honest.py"
    script.write_text(
        HOSTILE
        + ROWS
        + "rows(entry(places=[(0, 1, (1 << 20) - 1)], xattrs=xattr(b'user.a', b'x'), seconds=-5),\n"
        "     entry(name=b'l', kind=3, target=b'/etc'), entry(name=b'bad', kind=0))\nsend(END)\n"
    )
    monkeypatch.setattr(session_module, "PARSER", (str(script),))
    with FileSystemSession(FileReader(image), "ext4", Limits()) as session:
        file, link, bad = session.children(2)
        assert (file.name, file.places, file.xattrs, file.head.mtime) == (
            b"a",
            ((0, 1, (1 << 20) - 1),),
            (("user.a", b"x"),),
            -5,
        )
        assert (link.name, link.target, link.kind) == (b"l", b"/etc", "symlink")
        assert (bad.name, bad.kind) == (b"bad", None)


def test_a_possible_layout_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    script = tmp_path / "honest.py"
    script.write_text(HOSTILE + "places((0, 1024, 8), (2048, 2048, (1 << 20) - 2048))\nsend(END)\n")
    monkeypatch.setattr(session_module, "PARSER", (str(script),))
    with FileSystemSession(FileReader(image), "ext4", Limits()) as session:
        assert list(session.layout(12)) == [(0, 1024, 8), (2048, 2048, (1 << 20) - 2048)]


def test_words_of_a_parser_reach_the_user_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    script = tmp_path / "hostile.py"
    words = json.dumps(json.dumps(["x", "\x1b[2J\r\n" + "long" * 500]))
    script.write_text(HOSTILE + f"send(ERROR, {words}.encode()); os.read(0, 1)\n")
    monkeypatch.setattr(session_module, "PARSER", (str(script),))
    session = FileSystemSession(FileReader(image), "ext4", Limits())
    with session, pytest.raises(UnsupportedFormatError) as caught:
        session.stat("/")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 500


class FailingReader:
    """Fails from a given read on, as a repository that went away would."""

    def __init__(self, image: Path, good_reads: int) -> None:
        self._reader = FileReader(image)
        self._left = good_reads

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise StorageUnreachableError("The repository went away; try again.")
        return self._reader.read(offset, length)


@pytest.mark.needs_root
def test_an_error_of_the_reader_reaches_the_caller(guest) -> None:
    reader = FailingReader(guest.image, 1_000_000)
    with FileSystemSession(reader, guest.form[:4], Limits()) as session:
        reader._left = 1
        with pytest.raises(StorageUnreachableError, match="went away"):
            list(session.export("/"))
        reader._left = 1_000_000
        assert session.stat("/").inode == 2


@pytest.mark.parametrize("wants_to_run", [True, False])
def test_only_a_parser_that_is_not_let_run_has_longer(
    wants_to_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    subprocess.run(["mke2fs", "-qF", "-t", "ext4", image], check=True)
    limits = Limits(patience_seconds=0.5)
    asked = threading.Event()

    def use(_: int) -> tuple[bool, float]:
        asked.set()
        return wants_to_run, 0.0

    with open_filesystem(FileReader(image), limits) as session:
        assert session._process is not None
        process = session._process.pid
        monkeypatch.setattr(session_module, "_processor_use", use)
        # Stopped, it stands for one that others keep from running.
        os.kill(process, signal.SIGSTOP)

        def go_on() -> None:
            asked.wait()
            os.kill(process, signal.SIGCONT)

        if wants_to_run:
            threading.Thread(target=go_on).start()
            assert session.stat("/").kind is EntryKind.DIRECTORY
            assert asked.is_set(), "its patience was never over, so this showed nothing"
        else:
            with pytest.raises(UnsupportedFormatError, match="no result"):
                session.stat("/")


def test_who_runs_is_known() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            while (use := session_module._processor_use(busy.pid))[1] < 0.1:
                pass
            assert use[0]
        finally:
            busy.kill()
    assert session_module._processor_use(busy.pid) == (False, 0.0)
    with subprocess.Popen(["sleep", "60"]) as idle:
        try:
            while session_module._processor_use(idle.pid)[0]:
                pass
        finally:
            idle.kill()
