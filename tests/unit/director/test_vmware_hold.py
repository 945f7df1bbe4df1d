"""Holding by VMware snapshots: what is claimed, and that none outlives its hold."""

import json
import threading
from dataclasses import replace

import pytest

from atoll.director import vmware_hold as module
from atoll.director.vmware_hold import VmwareHold, clear_leftovers, snapshot_name
from atoll.model.consistency import Consistency
from atoll.model.errors import (
    AgentUnavailableError,
    HoldFailedError,
    UnprotectableVmError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.model.inventory import VirtualDisk, VirtualMachine
from atoll.model.vmware import LeftoverSnapshot, VmwareSnapshot

BOOT = "0b9d0f6e-3c1b-4d43-9c59-0d8f3b6f2a11"
DEADLINE = 30.0


def virtual_machine(name):
    return VirtualMachine(
        moref=f"vm-{name}",
        instance_uuid=f"uuid-{name}",
        name=name,
        host="esx1",
        powered_on=True,
        template=False,
        guest_os="Debian",
        disks=(),
        has_snapshot=False,
        vmx_path=f"[vmfs1] {name}/{name}.vmx",
    )


def account(number, **changes):
    application = {
        "kind": "postgresql",
        "name": "15-main",
        "held": True,
        "position": "0/1",
        "witness": "7",
        "flush_seconds": 0.1,
        "detail": "",
    }
    given = {
        "format": 1,
        "boot": BOOT,
        "number": number,
        "held": True,
        "reason": "",
        "began_at": 1000.0,
        "held_at": 1001.0,
        "ended_at": 1002.0,
        "lease_seconds": 30.0,
        "filesystems_thawed": False,
        "applications": [application],
        **changes,
    }
    return json.dumps(given)


def unfinished(number):
    return account(number, held=False, reason="the hold has not ended", held_at=None, ended_at=None)


class FakeVCenter:
    """Snapshots by VM; fails, hangs and forgets when it is told to. `accounts` are guestinfo."""

    def __init__(self):
        self.snapshots = {}
        self.accounts = {}
        self.after_hold = {}
        self.quiesced = True
        self.create_error = {}
        self.remove_error = {}
        self.hang = {}
        self.removed_elsewhere = set()
        self.calls = []
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def quiesced_snapshot(self, instance_uuid, name, text, deadline_seconds):
        with self._lock:
            self.calls.append(("create", instance_uuid))
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            if instance_uuid in self.hang:
                assert self.hang[instance_uuid].wait(60)
            error = self.create_error.get(instance_uuid)
            if isinstance(error, UnprotectableVmError):
                raise error
            self.snapshots[instance_uuid] = f"snapshot-of-{instance_uuid}"
            if instance_uuid in self.after_hold:
                self.accounts[instance_uuid] = self.after_hold[instance_uuid]
            if error is not None:
                raise error
        finally:
            with self._lock:
                self.running -= 1
        moref = self.snapshots[instance_uuid]
        return VmwareSnapshot(
            instance_uuid, instance_uuid, name, moref, self.quiesced, 500.0, 499.0, 501.0
        )

    def present(self, instance_uuid, name):
        if instance_uuid in self.removed_elsewhere:
            self.snapshots.pop(instance_uuid)
        found = self.snapshots.get(instance_uuid)
        return () if found is None else (found,)

    def remove(self, instance_uuid, name, deadline_seconds):
        self.calls.append(("remove", instance_uuid))
        if instance_uuid in self.remove_error:
            raise self.remove_error[instance_uuid]
        self.snapshots.pop(instance_uuid, None)

    def leftovers(self):
        return tuple(LeftoverSnapshot(uuid, uuid, "atoll-old", 1.0) for uuid in self.snapshots)

    def account(self, instance_uuid):
        return self.accounts.get(instance_uuid)


@pytest.fixture
def vcenter():
    return FakeVCenter()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_ACCOUNT_POLL_SECONDS", 0.01)


def go_through(vcenter, channels=None, vms=("db1",), account_seconds=0.1):
    machines = [virtual_machine(name) for name in vms]
    hold = VmwareHold(vcenter, "run-1", channels or {}, account_seconds)
    hold.prepare(machines)
    held = hold.hold(machines, DEADLINE)
    return held, hold.release(DEADLINE)


def verdict(vcenter, **arguments):
    return go_through(vcenter, **arguments)[1]["uuid-db1"]


def test_quiesced_and_an_unbroken_account_is_application_consistent(vcenter):
    vcenter.accounts["uuid-db1"] = account(4)
    vcenter.after_hold["uuid-db1"] = account(5)
    held, verdicts = go_through(vcenter)
    told = verdicts["uuid-db1"]
    assert held["uuid-db1"].snapshot == told.snapshot
    assert (told.consistency, told.reasons, told.leftover) == (Consistency.APP, (), "")
    assert told.hold.unbroken
    assert told.hold.run == "run-1"
    assert (told.hold.began_at, told.hold.frozen_at, told.hold.thawed_at) == (1000, 1001, 1002)
    assert told.hold.applications[0].witness == "7"
    assert vcenter.snapshots == {}


@pytest.mark.parametrize(
    ("modes", "consistency"),
    [
        (("", "physicalMode"), Consistency.NONE),
        (("", "independent_persistent"), Consistency.NONE),
        (("physicalMode", "physicalMode"), Consistency.CRASH),
        (("", "virtualMode"), Consistency.FILESYSTEM),
    ],
)
def test_a_disk_that_snapshots_leave_out_is_of_another_instant(vcenter, modes, consistency):
    disks = tuple(
        VirtualDisk(2000 + n, f"Hard disk {n}", "vmfs1", f"{n}.vmdk", 1,
                    mode if mode.startswith("independent") else "persistent",
                    mode.endswith("Mode"), mode if mode.endswith("Mode") else None)
        for n, mode in enumerate(modes)
    )  # fmt: skip
    machine = replace(virtual_machine("db1"), disks=disks)
    vcenter.after_hold["uuid-db1"] = account(5, applications=[])
    hold = VmwareHold(vcenter, "run-1", {}, 0.1)
    hold.prepare([machine])
    hold.hold([machine], DEADLINE)
    told = hold.release(DEADLINE)["uuid-db1"]
    assert told.consistency is consistency
    assert told.stood_still is (consistency is Consistency.FILESYSTEM)
    if not told.stood_still:
        assert "leave out" in told.reasons[0] and "Hard disk 1" in told.reasons[0]


def test_the_guests_clock_is_bounded_by_ours(vcenter, monkeypatch):
    times = iter([900.0, 910.0])
    monkeypatch.setattr(module.time, "time", lambda: next(times))
    vcenter.after_hold["uuid-db1"] = account(1)
    hold = verdict(vcenter).hold
    # Ahead by 92 to 100 seconds: it began at 1000 after our 900, and ended at 1002 before our 910.
    assert (hold.clock_offset_seconds, hold.clock_error_seconds) == (96.0, 4.0)


def test_the_hold_lasts_until_it_is_released(vcenter):
    hold = VmwareHold(vcenter, "run-1", {})
    hold.prepare([virtual_machine("db1")])
    held = hold.hold([virtual_machine("db1")], DEADLINE)
    assert vcenter.snapshots == {"uuid-db1": held["uuid-db1"].snapshot.moref}
    hold.release(DEADLINE)
    assert vcenter.calls == [("create", "uuid-db1"), ("remove", "uuid-db1")]
    assert hold.release(DEADLINE) == {}


NOT_APP = {
    "no agent": (None, None, Consistency.FILESYSTEM, "no agent in it has said anything"),
    "not asked": (account(4), account(4), Consistency.FILESYSTEM, "no agent in it has said"),
    "another hold": (account(4), account(6), Consistency.FILESYSTEM, "counts 6 holds"),
    "not ended": (account(4), unfinished(5), Consistency.FILESYSTEM, "has not said how"),
    "nonsense": (account(4), "nonsense", Consistency.FILESYSTEM, "cannot be read"),
    "nonsense before": ("nonsense", account(5), Consistency.FILESYSTEM, "cannot be read"),
    "broken": (
        account(4),
        account(5, held=False, reason="the lease of 30 s ended"),
        Consistency.FILESYSTEM,
        "the lease of 30 s ended",
    ),
    "dead man": (
        account(4),
        account(5, held=False, reason="never asked", filesystems_thawed=True),
        Consistency.CRASH,
        "did not thaw",
    ),
}


@pytest.mark.parametrize(
    ("before", "after", "consistency", "reason"), NOT_APP.values(), ids=list(NOT_APP)
)
def test_less_than_an_unbroken_account_is_less(vcenter, before, after, consistency, reason):
    vcenter.accounts["uuid-db1"] = before
    vcenter.after_hold["uuid-db1"] = after
    told = verdict(vcenter)
    assert told.consistency is consistency
    assert reason in told.reasons[0]


def test_a_dead_mans_account_of_old_does_not_haunt_later_holds(vcenter):
    old = account(4, held=False, reason="never asked", filesystems_thawed=True)
    vcenter.accounts["uuid-db1"] = vcenter.after_hold["uuid-db1"] = old
    assert verdict(vcenter).consistency is Consistency.FILESYSTEM


def test_an_application_that_was_not_held_is_named(vcenter):
    given = json.loads(account(1))
    given["applications"].append(
        {**given["applications"][0], "name": "15-other", "held": False, "detail": "a lock"}
    )
    vcenter.after_hold["uuid-db1"] = json.dumps(given)
    told = verdict(vcenter)
    assert told.consistency is Consistency.FILESYSTEM
    assert told.reasons == ("postgresql 15-other was not held: a lock",)


def test_no_application_is_nothing_lost(vcenter):
    vcenter.after_hold["uuid-db1"] = account(1, applications=[])
    told = verdict(vcenter)
    assert (told.consistency, told.reasons) == (Consistency.FILESYSTEM, ())


def test_not_quiesced_is_crash_consistent_whatever_the_agent_says(vcenter):
    vcenter.quiesced = False
    vcenter.after_hold["uuid-db1"] = account(1)
    told = verdict(vcenter)
    assert (told.consistency, told.hold) == (Consistency.CRASH, None)
    assert told.reasons == ("vCenter says that the guest was not quiesced",)
    assert vcenter.snapshots == {}


def test_a_snapshot_that_somebody_removed_too_early_proves_nothing(vcenter):
    vcenter.removed_elsewhere.add("uuid-db1")
    vcenter.after_hold["uuid-db1"] = account(1)
    told = verdict(vcenter)
    assert told.consistency is Consistency.CRASH
    assert "was removed before" in told.reasons[0]


def test_when_vcenter_cannot_say_whether_it_stood_it_proves_nothing(vcenter, monkeypatch):
    def unreachable(*_):
        raise VCenterUnreachableError("vCenter did not answer.")

    monkeypatch.setattr(vcenter, "present", unreachable)
    monkeypatch.setattr(module, "_STANDING_SECONDS", 0.0)
    told = verdict(vcenter)
    assert told.consistency is Consistency.CRASH
    assert "could not say" in told.reasons[0]
    assert ("remove", "uuid-db1") in vcenter.calls


def test_a_vcenter_that_is_away_for_a_moment_is_asked_again(vcenter, monkeypatch):
    answers = iter([VCenterUnreachableError("vCenter did not answer."), ("snapshot-of-uuid-db1",)])

    def present(*_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(vcenter, "present", present)
    monkeypatch.setattr(module, "_ASK_AGAIN_SECONDS", 0.01)
    vcenter.after_hold["uuid-db1"] = account(1)
    assert verdict(vcenter).consistency is Consistency.APP


def test_even_a_bug_of_ours_leaves_no_snapshot(vcenter, monkeypatch):
    monkeypatch.setattr(vcenter, "present", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verdict(vcenter)
    assert vcenter.snapshots == {}


def test_those_that_are_held_are_released_before_those_that_are_late(vcenter, monkeypatch):
    monkeypatch.setattr(module, "_WORKERS", 2)
    vcenter.hang["uuid-slow"] = threading.Event()
    machines = [virtual_machine(name) for name in ("slow", "vm1", "vm2")]
    hold = VmwareHold(vcenter, "run-1", {})
    hold.prepare(machines)
    hold.hold(machines, 1.0)
    # The slow one ends only when the others have been let go.
    remove = vcenter.remove

    def release_then_unblock(uuid, name, seconds):
        remove(uuid, name, seconds)
        if uuid == "uuid-vm2":
            vcenter.hang["uuid-slow"].set()

    monkeypatch.setattr(vcenter, "remove", release_then_unblock)
    monkeypatch.setattr(module, "_WORKERS", 1)
    hold.release(DEADLINE)
    assert [uuid for what, uuid in vcenter.calls if what == "remove"] == [
        "uuid-vm1",
        "uuid-vm2",
        "uuid-slow",
    ]


class Channel:
    """An agent on the network that tells its accounts one after the other, the last for ever."""

    def __init__(self, *accounts):
        self.accounts = list(accounts)

    def vmware_account(self):
        told = self.accounts.pop(0) if len(self.accounts) > 1 else self.accounts[0]
        if isinstance(told, Exception):
            raise told
        return told


def test_an_agent_on_the_network_is_believed_without_guestinfo(vcenter):
    told = verdict(vcenter, channels={"uuid-db1": Channel(account(4), account(5))})
    assert told.consistency is Consistency.APP


def test_guestinfo_is_believed_when_the_network_is_gone(vcenter):
    vcenter.accounts["uuid-db1"] = account(4)
    vcenter.after_hold["uuid-db1"] = account(5)
    gone = Channel(AgentUnavailableError("The agent of db1 does not answer."))
    assert verdict(vcenter, channels={"uuid-db1": gone}).consistency is Consistency.APP


def test_an_account_that_comes_a_little_late_is_waited_for(vcenter):
    channel = Channel(account(4), unfinished(5), unfinished(5), unfinished(5), account(5))
    told = verdict(vcenter, channels={"uuid-db1": channel}, account_seconds=60.0)
    assert told.consistency is Consistency.APP


def test_nobody_waits_for_a_guest_without_an_agent(vcenter, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("waited"))
    assert verdict(vcenter, account_seconds=60.0).consistency is Consistency.FILESYSTEM


def test_a_refused_vm_is_not_touched(vcenter):
    vcenter.create_error["uuid-db1"] = UnprotectableVmError("VM db1 cannot be held.")
    told = verdict(vcenter)
    assert (told.consistency, told.reasons) == (Consistency.CRASH, ("VM db1 cannot be held.",))
    assert vcenter.calls == [("create", "uuid-db1")]


def test_a_failed_snapshot_is_removed_should_it_be_there_after_all(vcenter):
    vcenter.create_error["uuid-db1"] = VCenterUnreachableError("The answer was lost.")
    told = verdict(vcenter)
    assert (told.consistency, told.snapshot) == (Consistency.CRASH, None)
    assert told.reasons == ("The answer was lost.",)
    assert vcenter.snapshots == {}


def test_one_slow_vm_does_not_keep_the_others(vcenter, monkeypatch):
    vcenter.hang["uuid-slow"] = threading.Event()
    machines = [virtual_machine("slow"), virtual_machine("db1")]
    hold = VmwareHold(vcenter, "run-1", {})
    hold.prepare(machines)
    held = hold.hold(machines, 0.5)
    assert held["uuid-db1"].snapshot is not None
    assert held["uuid-slow"].snapshot is None
    assert "did not answer within 0.5 s" in str(held["uuid-slow"].failure)

    vcenter.hang["uuid-slow"].set()
    verdicts = hold.release(DEADLINE)
    # It came when nobody counted on it any more: it is removed and its hold not claimed.
    assert vcenter.snapshots == {}
    assert verdicts["uuid-slow"].consistency is Consistency.CRASH
    assert verdicts["uuid-db1"].consistency is Consistency.FILESYSTEM


def test_vms_that_wait_for_their_turn_are_called_off(vcenter, monkeypatch):
    monkeypatch.setattr(module, "_WORKERS", 1)
    vcenter.hang["uuid-slow"] = threading.Event()
    machines = [virtual_machine("slow"), virtual_machine("db1")]
    hold = VmwareHold(vcenter, "run-1", {})
    hold.prepare(machines)
    held = hold.hold(machines, 0.2)
    assert isinstance(held["uuid-db1"].failure, HoldFailedError)
    vcenter.hang["uuid-slow"].set()
    hold.release(DEADLINE)
    assert vcenter.snapshots == {}
    assert ("remove", "uuid-db1") not in vcenter.calls


def test_a_vm_whose_turn_comes_after_the_deadline_is_not_begun(vcenter, monkeypatch):
    monkeypatch.setattr(module, "_WORKERS", 1)
    vcenter.hang["uuid-slow"] = threading.Event()
    machines = [virtual_machine("slow"), virtual_machine("db1")]
    hold = VmwareHold(vcenter, "run-1", {})
    hold.prepare(machines)
    hold.hold(machines, 0.2)
    vcenter.hang["uuid-slow"].set()
    assert isinstance(hold._jobs["uuid-db1"].exception(60), HoldFailedError)
    hold.release(DEADLINE)
    assert ("create", "uuid-db1") not in vcenter.calls


def test_no_more_vms_than_vcenter_can_take_are_held_at_once(vcenter):
    names = [f"vm{number}" for number in range(30)]
    held, verdicts = go_through(vcenter, vms=names)
    assert all(each.snapshot for each in held.values())
    assert 1 <= vcenter.most <= module._WORKERS
    assert len(verdicts) == 30


def test_a_removal_that_fails_is_told_and_the_hold_stays_proven(vcenter):
    vcenter.after_hold["uuid-db1"] = account(1)
    vcenter.remove_error["uuid-db1"] = VCenterOperationError("It is locked.")
    told = verdict(vcenter)
    assert (told.consistency, told.leftover) == (Consistency.APP, "It is locked.")


def test_whatever_happens_in_between_all_are_released(vcenter):
    machines = [virtual_machine("db1"), virtual_machine("app1")]
    with pytest.raises(KeyboardInterrupt), VmwareHold(vcenter, "run-1", {}) as hold:
        hold.prepare(machines)
        hold.hold(machines, DEADLINE)
        raise KeyboardInterrupt
    assert vcenter.snapshots == {}


def test_without_looking_before_no_account_is_believed(vcenter):
    vcenter.after_hold["uuid-db1"] = account(1)
    hold = VmwareHold(vcenter, "run-1", {}, 0.1)
    hold.hold([virtual_machine("db1")], DEADLINE)
    told = hold.release(DEADLINE)["uuid-db1"]
    assert told.consistency is Consistency.FILESYSTEM
    assert "was not asked before" in told.reasons[0]


def test_the_next_start_clears_what_a_killed_run_left(vcenter):
    vcenter.snapshots = {"uuid-a": "snapshot-1", "uuid-b": "snapshot-2"}
    vcenter.remove_error["uuid-b"] = VCenterOperationError("It is locked.")
    cleared = clear_leftovers(vcenter, DEADLINE, set)
    assert {each.vm: str(error) for each, error in cleared.items()} == {
        "uuid-a": "None",
        "uuid-b": "It is locked.",
    }
    assert vcenter.snapshots == {"uuid-b": "snapshot-2"}
    assert clear_leftovers(FakeVCenter(), DEADLINE, set) == {}


def test_what_a_live_run_has_is_no_leftover(vcenter):
    vcenter.snapshots = {"uuid-a": "snapshot-1"}
    [left] = vcenter.leftovers()
    mine, other = left.name.removeprefix("atoll-"), left.name.removeprefix("atoll-")[:-1]
    assert clear_leftovers(vcenter, DEADLINE, lambda: {mine}) == {}
    assert list(clear_leftovers(vcenter, DEADLINE, lambda: {other})) == [left]


def test_names_fit_vsphere():
    assert snapshot_name("run-1") == "atoll-run-1"
    assert len(snapshot_name("r" * 80)) <= 80


def test_a_machine_without_agent_is_not_mistaken(vcenter):
    machine = replace(virtual_machine("db1"), instance_uuid="uuid-other")
    hold = VmwareHold(vcenter, "run-1", {"uuid-db1": Channel(account(1))}, 0.1)
    hold.prepare([machine])
    hold.hold([machine], DEADLINE)
    assert hold.release(DEADLINE)["uuid-other"].consistency is Consistency.FILESYSTEM
