"""A real guest held by VMware snapshots: quiesced without a network, its disks still, then proven.

QEMU's guest agent stands for VMware Tools; it runs the same scripts.
"""

import hashlib
import subprocess
import time

import pytest

from atoll.director.vmware_hold import VmwareHold
from atoll.guests.account import read_account
from atoll.guests.authority import Authority
from atoll.guests.enrolment import enrol
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.points import RestorePoint
from atoll.model.progress import Silent
from atoll.recovery.prove import prove
from atoll.vsphere.client import VCenter
from atoll_lab.guests import qemu
from atoll_lab.guests.load import postgres_load
from atoll_lab.guests.qmp import GuestAgent, Machine
from atoll_lab.guests.snapshots import QemuGuests
from vsphere_site import DB1_UUID, simulated_site

pytestmark = [pytest.mark.lab, pytest.mark.needs_root]
ANSWERS = 300.0
LABELS = ("system", "data", "wal")
TIMES = {"prepare_seconds": 60, "budget_seconds": 60, "lease_seconds": 60, "dead_man_seconds": 60}
"""An emulated guest on a busy machine is slow; one whose thaw never comes waits for all of these."""


@pytest.fixture
def guests(guest_place):
    return QemuGuests(guest_place)


@pytest.fixture
def vcenter(guest_place, guests):
    """Knows db1, whose guest runs in `guest_place`."""
    (guest_place / "site").mkdir()
    with (
        simulated_site(guest_place / "site", guests=guests) as site,
        VCenter.connect(site.settings()) as connected,
    ):
        yield connected


@pytest.fixture
def drive(guest_place):
    """The agent with its configuration, for a guest that has no network."""
    authority = Authority.open(guest_place / "agents")
    application = {"kind": "postgresql", "name": "15-main", "database": "bench"}
    return enrol(
        authority,
        "db1",
        DB1_UUID,
        guest_place / "drive.tar",
        address="127.0.0.1",
        applications=[application | {"witness": "SELECT max(id) FROM ledger"}],
        vmware=TIMES,
    )


@pytest.fixture
def guest(boot, drive):
    """db1 under load, its agent and its Tools there."""
    guest = boot("db1", config_drive=drive)
    shell = guest.shell
    assert shell.run("until pg_isready -q; do sleep 0.2; done", ANSWERS).status == 0
    shell.check("until grep -q listens /var/log/atoll-agent.log; do sleep 0.2; done", ANSWERS)
    load = postgres_load(shell)
    load.start(3600, rate=20)
    await_commits(shell)
    return guest


def await_commits(shell):
    """Wait until the load has committed once more."""
    load = postgres_load(shell)
    before = load.committed().rows
    limit = time.monotonic() + ANSWERS
    while load.committed().rows == before:
        assert time.monotonic() < limit, "the load does not commit"
        time.sleep(0.5)


class Held:
    """db1 held once, from the outside."""

    def __init__(self, vcenter, run):
        self.keeper = vcenter.snapshots("site-a")
        self.vm = next(vm for vm in vcenter.inventory().vms if vm.name == "db1")
        self.hold = VmwareHold(self.keeper, run, {}, 60.0)
        self.hold.prepare([self.vm])
        self.outcome = self.hold.hold([self.vm], ANSWERS)[DB1_UUID]

    def release(self):
        return self.hold.release(ANSWERS)[DB1_UUID]


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def restore_point(vm, verdict):
    proof = ConsistencyProof(
        vm, verdict.consistency, verdict.reasons, verdict.hold, "g", "s", 1.0, 1.1, "a", "a"
    )
    return RestorePoint("p", "r", vm, DB1_UUID, 1.0, "g", "s", False, proof, (), "", "debian12")


def test_the_disks_stand_still_while_the_guest_works_and_hold_what_it_had_committed(
    guest, vcenter, guest_place
):
    shell, load = guest.shell, postgres_load(guest.shell)
    before = load.committed()
    held = Held(vcenter, "run-1")
    assert held.outcome.failure is None
    assert held.outcome.snapshot.quiesced
    disks = {label: guest.run_dir / f"{label}.raw" for label in LABELS}
    data = digest(disks["data"])
    copies = []
    for label, disk in disks.items():
        copy = guest_place / f"{label}.copy"
        subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
        copies.append((label, str(copy)))
    await_commits(shell)
    after = load.committed()
    # The guest serves again and writes; its disks below do not move.
    assert after.rows > before.rows
    assert digest(disks["data"]) == data

    verdict = held.release()

    assert (verdict.consistency, verdict.reasons) == (Consistency.APP, ())
    assert verdict.leftover == ""
    [application] = verdict.hold.applications
    assert before.highest <= int(application.witness) <= after.highest
    # What was written meanwhile is in the disks again, and nothing was lost.
    await_commits(shell)
    shell.check("sync")
    assert digest(disks["data"]) != data
    assert list(guest.run_dir.glob(f"*{qemu.DELTA_SUFFIX}")) == []
    assert load.committed().rows >= after.rows
    load.stop()
    assert shell.check("pgrep -fc '[a]toll_agent.watchdog' || true").strip() == "0"

    evidence = prove(restore_point("db1", verdict), copies, ANSWERS, guest_place / "work", Silent())
    assert evidence.passed, evidence
    assert evidence.facts["postgresql 15-main: witness_as_held"] is True, evidence
    # No transaction's: reading goes on in a hold and may tidy pages, which is logged; a page is 8 KiB.
    assert evidence.facts["postgresql 15-main: wal_replayed_bytes"] < 1 << 18, evidence
    assert evidence.facts["filesystems_recovered"] == "", evidence
    assert evidence.facts["repair_ran"] is False


def test_without_a_serving_agent_the_script_holds_by_itself(guest, vcenter):
    shell = guest.shell
    shell.check(
        "mv /etc/atoll/agent.json /etc/atoll/put-away; pkill -f '[a]gent.pyz serve'; sleep 1"
    )
    held = Held(vcenter, "run-1")
    # A merge that somebody began and was cut off from is gone on with.
    with Machine(guest.qmp_socket) as machine:
        arguments = {"device": "disk1-delta", "base_node": "disk1", "auto_dismiss": False}
        machine.run("block-commit", job_id="merge-disk1", **arguments)
    verdict = held.release()
    assert (verdict.consistency, verdict.reasons) == (Consistency.APP, ())
    assert verdict.leftover == ""
    assert list(guest.run_dir.glob(f"*{qemu.DELTA_SUFFIX}")) == []
    [application] = verdict.hold.applications
    assert (application.kind, application.name) == ("postgresql", "15-main")
    await_commits(shell)
    shell.check("while pgrep -f '[a]toll_agent vmware hold'; do sleep 0.2; done")


def test_a_thaw_that_never_comes_keeps_nobody_for_ever(guest, vcenter, guests):
    shell = guest.shell
    guests.thaws = False
    held = Held(vcenter, "run-1")
    assert held.outcome.snapshot.quiesced
    held.hold._account_seconds = 0.0
    verdict = held.release()
    # Told only what is known by then: that the guest was quiesced.
    assert verdict.consistency is Consistency.FILESYSTEM
    assert verdict.reasons == ("its agent has not said how its hold ended",)

    # The lease lets the database go, and the dead man thaws what VMware Tools left frozen.
    await_commits(shell)
    told = read_account(held.keeper.account(DB1_UUID))
    assert (told.held, told.filesystems_thawed) == (False, True)
    assert "never asked" in told.reason
    with GuestAgent(guest.tools_socket, ANSWERS) as tools:
        # Its own idea of what is frozen has to be put right, which thaws nothing.
        tools.run("guest-fsfreeze-thaw", ANSWERS)
    guests.thaws = True
    assert Held(vcenter, "run-2").release().consistency is Consistency.APP
