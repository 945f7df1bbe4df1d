"""The restore test on real disks: cut off under load, booted in the cage, asked by the witness."""

import hashlib
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.model.consistency import ApplicationState, Consistency, ConsistencyProof, Hold
from atoll.model.points import RestorePoint
from atoll.model.progress import Silent
from atoll.recovery.prove import prove
from atoll.recovery.sandbox import SandboxDisk, SandboxLimits, clear_stale, open_sandbox
from atoll_lab.guests import qemu
from atoll_lab.guests.image import guest_disks
from atoll_lab.guests.load import postgres_load

pytestmark = [pytest.mark.lab, pytest.mark.needs_root]
ANSWERS = 300.0
LABELS = ("system", "data", "wal")


def point(*applications):
    hold = Hold("r1", 0.9, 1.0, 1.5, 10.0, True, "", applications, ("/",), 0.0, 0.01)
    proof = ConsistencyProof(
        "db1",
        Consistency.CRASH,
        ("power cut",),
        hold if applications else None,
        "g",
        "s",
        1.1,
        1.2,
        "a",
        "a",
    )
    return RestorePoint("p1", "r1", "db1", "u", 1.1, "g", "s", False, proof, (), "", "debian12")


def digest(path):
    with open(path, "rb") as disk:
        return hashlib.file_digest(disk, "blake2b").hexdigest()


def qemu_took_over(pid):
    """Whether the cage's programs have given way to QEMU."""
    return b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]


def test_after_a_power_cut_under_load_every_committed_row_is_there(boot, config_drive, guest_place):
    guest = boot("db1", config_drive=config_drive)
    shell = guest.shell
    assert shell.run("until pg_isready -q; do sleep 0.2; done", ANSWERS).status == 0
    load = postgres_load(shell)
    load.start(600)
    shell.check("until [ $(grep -c ^progress /run/lab/pgbench.log) -ge 3 ]; do sleep 0.2; done")
    acknowledged = load.committed()
    assert acknowledged.rows > 0
    qemu.kill(guest.run_dir)

    disks = [(label, str(guest.run_dir / f"{label}.raw")) for label in LABELS]
    before = [digest(path) for _, path in disks]
    held = ApplicationState("postgresql", "15/main", True, "", "0 0", 0.1)
    work = guest_place / "work"
    evidence = prove(point(held), disks, ANSWERS, work, Silent())

    assert evidence.passed, evidence
    assert evidence.facts["unprivileged"] is True
    found = str(evidence.facts["postgresql 15/main: witness"])
    assert int(found.split()[1]) >= acknowledged.rows
    assert evidence.facts["postgresql 15/main: witness_as_held"] is False
    assert isinstance(evidence.facts["wal_replayed_bytes"], int)
    assert evidence.facts["wal_replayed_bytes"] > 0
    assert "/var/lib/postgresql-wal" in str(evidence.facts["filesystems_recovered"])
    assert [digest(path) for _, path in disks] == before
    assert list(work.glob("sandbox-*")) == []


def test_an_nbd_export_is_booted_like_a_file(guest_place):
    """A guest without agent, its disk behind an NBD server on a UNIX socket."""
    address = guest_place / "nbd.sock"
    [disk] = guest_disks("app1")
    server = subprocess.Popen(
        [
            *("qemu-nbd", "--read-only", "--persistent", "--shared=4", "--format=raw"),
            *("--export-name=disk0", f"--socket={address}", str(disk.path)),
        ]
    )
    try:
        while not address.exists():
            assert server.poll() is None
        base = f"nbd+unix:///disk0?socket={address}"
        evidence = prove(point(), [("system", base)], ANSWERS, guest_place / "work", Silent())
    finally:
        server.kill()
        server.wait()
    assert evidence.passed, evidence
    assert evidence.facts["evidence"] == "login-prompt"


def test_a_disk_that_does_not_boot_fails_with_its_last_words(guest_place):
    empty = guest_place / "empty.raw"
    with empty.open("wb") as target:
        target.truncate(64 << 20)
    evidence = prove(point(), [("system", str(empty))], 5.0, guest_place / "work", Silent())
    assert not evidence.passed
    assert evidence.facts["evidence"] == "none"
    assert "serial_tail" in evidence.facts


def test_the_cage_holds(guest_place):
    [disk] = guest_disks("app1")
    limits = SandboxLimits(memory_bytes=512 << 20)
    with open_sandbox([SandboxDisk("system", str(disk.path))], guest_place, limits) as sandbox:
        assert not sandbox.ended()
        process = Path(f"/proc/{sandbox.pid}")
        # The cage's own program first; what counts is the QEMU it becomes.
        while not qemu_took_over(sandbox.pid):
            assert not sandbox.ended()
        while "Seccomp:\t2" not in (status := (process / "status").read_text()):
            assert not sandbox.ended(), sandbox.complaints()
        assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
        assert "NoNewPrivs:\t1" in status
        bounds = (process / "limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", bounds, re.MULTILINE)
        assert re.search(rf"^Max file size +{limits.written_bytes} ", bounds, re.MULTILINE)
        assert re.search(r"^Max address space +\d+ +\d+ +bytes", bounds, re.MULTILINE)
        [place] = guest_place.glob("sandbox-*")
        assert not list(place.glob("*.qcow2"))
    assert not process.exists()
    assert list(guest_place.glob("sandbox-*")) == []


def test_qemu_dies_with_a_killed_owner_and_the_next_start_tidies_up(guest_place):
    [disk] = guest_disks("app1")
    program = (
        "import sys\nfrom pathlib import Path\nfrom atoll.recovery.sandbox import *\n"
        "disk, place = SandboxDisk('system', sys.argv[1]), Path(sys.argv[2])\n"
        "with open_sandbox([disk], place, SandboxLimits()) as sandbox:\n"
        "    print(sandbox.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, disk.path, guest_place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pid = int(owner.stdout.readline())
        watched = os.pidfd_open(pid)
        while not qemu_took_over(pid):
            assert owner.poll() is None
    finally:
        owner.kill()
        owner.communicate()
    with os.fdopen(watched, closefd=True):
        assert select.select([watched], [], [], 60)[0], "QEMU outlived its owner"
    assert len(list(guest_place.glob("sandbox-*"))) == 1
    assert clear_stale(guest_place) == []
    assert list(guest_place.glob("sandbox-*")) == []
