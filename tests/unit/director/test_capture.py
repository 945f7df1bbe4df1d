"""Hold, snapshot, release: the order of things, and what each failure makes of the point."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from atoll.director import barrier, policy, vmware_hold
from atoll.director import capture as capture_module
from atoll.director.capture import Means, capture
from atoll.director.policy import HoldPolicy, Way
from atoll.guests.interface import Frozen, Thawed
from atoll.model.consistency import ApplicationState, Consistency
from atoll.model.errors import (
    AgentUnavailableError,
    AtollError,
    HoldFailedError,
    StorageUnreachableError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.model.inventory import Placement, VirtualDisk, VirtualMachine
from atoll.model.plan import Plan, PlannedDisk, PlannedVm
from atoll.model.progress import Silent
from atoll.model.storage import GroupSnapshot
from atoll.model.vmware import LeftoverSnapshot, VmwareSnapshot

HELD = ApplicationState("postgresql", "15/main", True, "0/1", "7", 0.1)
REFUSED = ApplicationState("postgresql", "15/main", False, "", None, 0.1, "a lock was not had")


class Guest:
    """A guest that follows its script and writes down what it was asked."""

    def __init__(self, log: list[str], name: str, application: ApplicationState = HELD) -> None:
        self.log, self.name, self.application = log, name, application
        self.prepared: list[str] = []
        self.frozen: str | None = None
        self.prepare_error: Exception | None = None
        self.freeze_error: Exception | None = None
        self.thaw_error: Exception | None = None
        self.heard: bool | None = None
        self.broken = ""
        self.frozen_again_at: float | None = None
        self.filesystems: tuple[str, ...] = ("/data", "/")

    def prepare(self, run: str) -> None:
        self.log.append(f"prepare {self.name}")
        self.prepared.append(run)
        if self.prepare_error:
            raise self.prepare_error

    def freeze(self, run: str, lease_seconds: float, budget_seconds: float) -> Frozen:
        self.log.append(f"freeze {self.name}")
        if self.freeze_error:
            raise self.freeze_error
        self.frozen = run
        return Frozen(run, 99.75, 100.0, (self.application,), self.filesystems, 0.0, 0.01)

    def thaw(self, run: str, snapshot: bool | None = None) -> Thawed:
        self.log.append(f"thaw {self.name}")
        self.heard = snapshot
        held = self.frozen == run and not self.broken
        self.frozen = None
        if self.thaw_error:
            raise self.thaw_error
        reason = self.broken or ("" if held else "never held")
        return Thawed(run, held, reason, self.frozen_again_at or 100.0, 101.0)

    def status(self) -> object:
        raise AssertionError("not asked for")

    def vmware_account(self) -> str | None:
        return None


class Storage:
    """The two calls a capture makes."""

    def __init__(self, log: list[str], guests: Sequence[Guest] = ()) -> None:
        self.log, self.guests = log, guests
        self.names: set[str] = set()
        self.error: Exception | None = None

    def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
        self.log.append(f"snapshot {group}")
        assert all(guest.frozen for guest in self.guests), "snapshot while a guest was running"
        if self.error:
            raise self.error
        self.names.add(name)
        return GroupSnapshot(group, name, 100.4, 100.5, 0.02, (("lun1", 1),))

    def delete_snapshot(self, group: str, name: str) -> None:
        self.names.discard(name)


class Vmware:
    """VMware snapshots by name; `quiesces` and `error` say what becomes of the next."""

    def __init__(self, log: list[str], quiesces: bool = True) -> None:
        self.log, self.quiesces = log, quiesces
        self.error: AtollError | None = None
        self.stuck = False
        self.there: dict[str, str] = {}

    def quiesced_snapshot(
        self, instance_uuid: str, name: str, text: str, deadline_seconds: float
    ) -> VmwareSnapshot:
        self.log.append(f"vmware {instance_uuid}")
        if self.error:
            raise self.error
        self.there[instance_uuid] = name
        return VmwareSnapshot(
            instance_uuid, instance_uuid, name, "snapshot-1", self.quiesces, 99.0, 98.0, 99.5
        )

    def present(self, instance_uuid: str, name: str) -> tuple[str, ...]:
        return ("snapshot-1",) if self.there.get(instance_uuid) == name else ()

    def remove(self, instance_uuid: str, name: str, deadline_seconds: float) -> None:
        self.log.append(f"remove {instance_uuid}")
        if self.stuck:
            raise VCenterOperationError(f"The snapshot of {instance_uuid} will not go.")
        self.there.pop(instance_uuid, None)

    def leftovers(self) -> tuple[LeftoverSnapshot, ...]:
        return ()

    def account(self, instance_uuid: str) -> str | None:
        return None


def planned(
    name: str,
    powered_on: bool = True,
    groups: Sequence[str] = ("prod",),
    mode: str = "persistent",
) -> PlannedVm:
    disk = VirtualDisk(2000, "Hard disk 1", "ds1", f"{name}/{name}.vmdk", 1, mode)
    vm = VirtualMachine(
        f"vm-{name}", name, name, "esx1", powered_on, False, "debian", (disk,), False, ""
    )
    return PlannedVm(
        vm, tuple(PlannedDisk(disk, group, "uuid", ("lun1",)) for group in groups), True
    )


def place(name: str, host: str = "esx1", **changed) -> Placement:
    return replace(
        Placement(host, ("ds1",), ((2000, "ds1", f"{name}/{name}.vmdk"),), True, False), **changed
    )


def still(uuids: Sequence[str]) -> Mapping[str, Placement]:
    return {uuid: place(uuid) for uuid in uuids}


def run(
    guests: Sequence[Guest],
    storage: Storage,
    placement=still,
    *names: str,
    vmware: Vmware | None = None,
    **policy,
):
    plan = Plan("r1", tuple(planned(n) for n in (names or [g.name for g in guests])), ())
    agents = {g.name: g for g in guests}
    means = Means(agents, storage, placement, vmware or Vmware([]))
    return capture(plan, "atoll-r1", means, HoldPolicy(**policy), Silent())


def test_all_are_frozen_before_the_snapshot_and_thawed_after() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    made = run(guests, Storage(log, guests))
    assert sorted(log[:2]) == ["prepare a", "prepare b"]
    assert sorted(log[2:4]) == ["freeze a", "freeze b"]
    assert log[4] == "snapshot prod"
    assert sorted(log[5:]) == ["thaw a", "thaw b"]
    assert [guest.heard for guest in guests] == [True, True]
    assert {proof.consistency for proof in made.proofs.values()} == {Consistency.APP}
    assert made.proofs["a"].hold is not None
    assert made.proofs["a"].hold.seconds == 1.25


def test_a_guest_that_cannot_be_frozen_stops_the_run_and_thaws_everybody() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    guests[1].freeze_error = HoldFailedError("b will not hold")
    storage = Storage(log)
    with pytest.raises(HoldFailedError, match="b will not hold"):
        run(guests, storage)
    assert "snapshot prod" not in log
    assert {"thaw a", "thaw b"} <= set(log)
    assert guests[0].frozen is None


def test_guests_that_were_prepared_for_nothing_are_let_go() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    guests[1].prepare_error = HoldFailedError("b cannot flush")
    with pytest.raises(HoldFailedError, match="b cannot flush"):
        run(guests, Storage(log))
    assert log[2:] == ["thaw a"]

    def unreachable(uuids: Sequence[str]) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        raise VCenterUnreachableError("vCenter is away")

    log.clear()
    with pytest.raises(VCenterUnreachableError):
        run(guests[:1], Storage(log), unreachable)
    assert log == ["prepare a", "thaw a"]


def test_a_lesser_point_is_made_when_allowed_and_says_why() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    guests[1].freeze_error = AgentUnavailableError("b does not answer")
    made = run(guests, Storage(log), accept_less=True)
    assert made.proofs["a"].consistency is Consistency.APP
    assert made.proofs["b"].consistency is Consistency.CRASH
    assert made.proofs["b"].reasons == ("b does not answer",)


def test_a_hold_that_broke_is_never_called_consistent() -> None:
    guest = Guest([], "a")
    guest.broken = "the lease ended"
    proof = run([guest], Storage([])).proofs["a"]
    assert proof.consistency is Consistency.CRASH
    assert proof.reasons == ("the lease ended",)


def test_a_hold_that_broke_and_was_had_again_is_not_taken_for_one() -> None:
    guest = Guest([], "a")
    guest.frozen_again_at = 100.2
    proof = run([guest], Storage([])).proofs["a"]
    assert proof.consistency is Consistency.CRASH
    assert "another one of the same run" in proof.reasons[0]
    assert proof.hold is not None
    assert (proof.hold.unbroken, proof.hold.reason) == (False, proof.reasons[0])


def test_a_thaw_without_an_answer_downgrades_the_point() -> None:
    guest = Guest([], "a")
    guest.thaw_error = AgentUnavailableError("gone")
    proof = run([guest], Storage([])).proofs["a"]
    assert proof.consistency is Consistency.CRASH
    assert "not confirmed" in proof.reasons[0]


def test_an_application_that_was_not_held_leaves_a_filesystem_point() -> None:
    proof = run([Guest([], "a", REFUSED)], Storage([])).proofs["a"]
    assert proof.consistency is Consistency.FILESYSTEM
    assert "a lock was not had" in proof.reasons[0]


def test_a_guest_with_nothing_frozen_is_never_file_system_consistent() -> None:
    guest = Guest([], "a", REFUSED)
    guest.filesystems = ()
    proof = run([guest], Storage([])).proofs["a"]
    assert proof.consistency is Consistency.CRASH


def test_guests_are_thawed_when_the_storage_fails() -> None:
    log: list[str] = []
    guest, storage = Guest(log, "a"), Storage(log)
    storage.error = StorageUnreachableError("the array is away")
    with pytest.raises(StorageUnreachableError):
        run([guest], storage)
    assert log[-1] == "thaw a"
    assert guest.frozen is None
    assert guest.heard is False


def test_a_vm_that_moves_during_the_hold_is_held_again() -> None:
    hosts = iter(["esx1", "esx2", "esx2", "esx2"])
    log: list[str] = []
    storage, guest = Storage(log), Guest(log, "a")
    made = run([guest], storage, lambda uuids: {u: place(u, next(hosts)) for u in uuids})
    assert log.count("snapshot prod") == 2
    assert guest.prepared == ["r1", "r1-1"], "the second hold is as short as the first"
    assert made.proofs["a"].consistency is Consistency.APP
    assert storage.names == {"atoll-r1"}


def test_a_disk_that_moved_to_another_datastore_is_never_read_where_it_was() -> None:
    there = place("a", disks=((2000, "ds2", "a/a.vmdk"),), datastores=("ds2",))
    places = iter([place("a"), there, there, there])
    storage, guest = Storage([]), Guest([], "a")
    with pytest.raises(HoldFailedError, match="elsewhere"):
        run([guest], storage, lambda uuids: {"a": next(places)})
    assert storage.names == set()
    assert guest.frozen is None


def test_a_vm_that_never_rests_is_downgraded() -> None:
    hosts = iter(f"esx{n}" for n in range(99))
    proof = run(
        [Guest([], "a")], Storage([]), lambda uuids: {u: place(u, next(hosts)) for u in uuids}
    ).proofs["a"]
    assert proof.consistency is Consistency.CRASH
    assert "moved from" in proof.reasons[-1]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"has_snapshot": True}, "VMware snapshot"),
        ({"disks": ((2000, "ds1", "a/a-000001.vmdk"),)}, "other disks"),
        ({"disks": ((2000, "ds2", "a/a.vmdk"),)}, "elsewhere"),
        ({"powered_on": False}, "switched on or off"),
    ],
)
def test_a_vm_that_is_not_what_was_planned_is_not_held(changed, says) -> None:
    log: list[str] = []
    guest, storage = Guest(log, "a"), Storage(log)
    with pytest.raises(HoldFailedError, match=says):
        run([guest], storage, lambda uuids: {u: place(u, **changed) for u in uuids})
    assert "freeze a" not in log
    assert storage.names == set()


def test_a_vm_that_had_snapshots_when_it_was_planned_is_held_with_them() -> None:
    vm = planned("a")
    plan = Plan("r1", (replace(vm, vm=replace(vm.vm, has_snapshot=True)),), ())
    where = {"a": place("a", has_snapshot=True)}
    means = Means({"a": Guest([], "a")}, Storage([]), lambda uuids: where, Vmware([]))
    made = capture(plan, "atoll-r1", means, HoldPolicy(), Silent())
    assert made.proofs["a"].consistency is Consistency.APP


def test_a_raw_mapping_that_shows_another_lun_now_is_noticed() -> None:
    vm = planned("a")
    disk = replace(vm.disks[0].disk, rdm=True, lun_uuid="02aa", lun="naa.aa")
    vm = replace(vm, vm=replace(vm.vm, disks=(disk,)))
    mapped = place("a", raw_luns=((2000, "02aa"),))
    other = place("a", raw_luns=((2000, "02bb"),))
    means = Means({"a": Guest([], "a")}, Storage([]), lambda uuids: {"a": other}, Vmware([]))
    with pytest.raises(HoldFailedError, match="other disks"):
        capture(Plan("r1", (vm,), ()), "atoll-r1", means, HoldPolicy(), Silent())
    places = iter([mapped, *[other] * 9])
    means = replace(means, placement=lambda uuids: {"a": next(places)})
    policy = HoldPolicy(moves=0)
    proof = capture(Plan("r1", (vm,), ()), "atoll-r1", means, policy, Silent()).proofs["a"]
    assert proof.consistency is Consistency.CRASH
    assert "other disks" in proof.reasons[-1]


@pytest.mark.parametrize(
    ("groups", "consistency"),
    [(("prod",), Consistency.CRASH), (("prod", "test"), Consistency.NONE)],
)
def test_a_disk_that_another_running_vm_writes_to_is_not_called_consistent(
    groups, consistency
) -> None:
    vm = planned("a", groups=groups)
    shared = tuple(replace(disk, shared_with=("node2",)) for disk in vm.disks)
    plan = Plan("r1", (replace(vm, disks=shared),), ())
    means = Means({"a": Guest([], "a")}, Storage([]), still, Vmware([]))
    proof = capture(plan, "atoll-r1", means, HoldPolicy(), Silent()).proofs["a"]
    assert proof.consistency is consistency
    assert "Hard disk 1 is attached to node2 too" in proof.reasons[0]


def test_a_vmware_snapshot_taken_during_the_hold_downgrades_the_point() -> None:
    places = iter([place("a"), *[place("a", has_snapshot=True)] * 9])
    proof = run([Guest([], "a")], Storage([]), lambda uuids: {"a": next(places)}, moves=0)
    assert proof.proofs["a"].consistency is Consistency.CRASH
    assert "VMware snapshot" in proof.proofs["a"].reasons[-1]


def test_a_vm_that_is_off_is_never_called_consistent() -> None:
    plan = Plan("r1", (planned("a", powered_on=False),), ())
    means = Means({}, Storage([]), lambda uuids: {"a": place("a", powered_on=False)}, Vmware([]))
    made = capture(plan, "atoll-r1", means, HoldPolicy(), Silent())
    assert made.proofs["a"].consistency is Consistency.CRASH
    assert "powered off" in made.proofs["a"].reasons[0]


def capture_over(guests: Sequence[Guest], storage: Storage, *groups: str, agents=None, **policy):
    """One VM over several LUN groups, and the other guests on the first of them."""
    first, *others = guests
    vms = (planned(first.name, groups=groups), *(planned(g.name) for g in others))
    agents = {g.name: g for g in guests} if agents is None else agents
    means = Means(agents, storage, still, Vmware([]))
    return capture(Plan("r1", vms, ()), "atoll-r1", means, HoldPolicy(**policy), Silent())


def test_a_vm_over_several_groups_has_them_all_within_one_hold() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    made = capture_over(guests, Storage(log, guests), "prod", "logs")
    assert sorted(log[4:6]) == ["snapshot logs", "snapshot prod"]
    assert set(made.snapshots) == {"prod", "logs"}
    proof = made.proofs["a"]
    assert proof.consistency is Consistency.APP
    assert [each.group for each in proof.instants] == ["logs", "prod"]
    assert [each.group for each in made.proofs["b"].instants] == ["prod"]


def test_disks_of_several_groups_that_were_not_held_are_not_called_of_one_instant() -> None:
    guest = Guest([], "a")
    proof = capture_over([guest], Storage([]), "prod", "logs", agents={}).proofs["a"]
    assert proof.consistency is Consistency.NONE
    assert "one after the other" in proof.reasons[-1]
    guest.broken = "the lease ended"
    proof = capture_over([guest], Storage([]), "prod", "logs").proofs["a"]
    assert proof.consistency is Consistency.NONE


def test_a_group_that_cannot_be_snapshot_fails_the_run_and_lets_go() -> None:
    log: list[str] = []
    guest = Guest(log, "a")

    class Half(Storage):
        def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
            if group == "logs":
                raise StorageUnreachableError("the array is away")
            return super().snapshot_group(group, name)

    with pytest.raises(StorageUnreachableError):
        capture_over([guest], Half(log), "prod", "logs")
    assert guest.frozen is None
    assert "thaw a" in log


class Slow(Guest):
    """Freezes when it is thawed, as one whose disk does not answer."""

    def __init__(self, log: list[str], name: str) -> None:
        super().__init__(log, name)
        self.asked_to_thaw = threading.Event()

    def freeze(self, run: str, lease_seconds: float, budget_seconds: float) -> Frozen:
        self.asked_to_thaw.wait(30)
        return super().freeze(run, lease_seconds, budget_seconds)

    def thaw(self, run: str, snapshot: bool | None = None) -> Thawed:
        self.asked_to_thaw.set()
        return super().thaw(run, snapshot)


def test_one_slow_guest_does_not_hold_the_rest_beyond_the_budget(monkeypatch) -> None:
    monkeypatch.setattr(barrier, "_LATE_SECONDS", 0.05)
    log: list[str] = []
    guests = [Guest(log, "a"), Slow(log, "b")]
    made = run(guests, Storage(log), accept_less=True, budget_seconds=0.2)
    assert log.index("snapshot prod") < log.index("thaw b")
    assert made.proofs["a"].consistency is Consistency.APP
    assert made.proofs["b"].consistency is Consistency.CRASH
    assert "within the 0.2 s" in made.proofs["b"].reasons[0]


def test_one_slow_guest_fails_a_run_that_accepts_nothing_less(monkeypatch) -> None:
    monkeypatch.setattr(barrier, "_LATE_SECONDS", 0.05)
    log: list[str] = []
    guests = [Guest(log, "a"), Slow(log, "b")]
    with pytest.raises(HoldFailedError, match=r"b was not held within"):
        run(guests, Storage(log), budget_seconds=0.2)
    assert "snapshot prod" not in log
    assert guests[0].frozen is None


class Dawdling(Storage):
    """Snapshots some groups only when it is told to go on."""

    def __init__(self, log: list[str], *groups: str) -> None:
        super().__init__(log)
        self.groups = groups
        self.go_on = threading.Event()
        self.went_on = threading.Event()

    def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
        if group not in self.groups:
            return super().snapshot_group(group, name)
        self.log.append(f"asked {group}")
        assert self.go_on.wait(60)
        taken = super().snapshot_group(group, name)
        self.went_on.set()
        return taken


class Teller(Silent):
    """Writes down what is noted; does something at the first note that has a word in it."""

    def __init__(self, word: str = "", act=lambda: None) -> None:
        self.word, self.act = word, act
        self.notes: list[str] = []

    def note(self, vm: str, text: str) -> None:
        self.notes.append(f"{vm}: {text}")
        if self.word in text:
            self.act()


@pytest.fixture
def short_lease(monkeypatch) -> dict[str, float]:
    monkeypatch.setattr(policy, "LEASE_MARGIN_SECONDS", 0.0)
    return {"lease_seconds": 0.4, "budget_seconds": 0.3}


def capture_by_both_ways(
    guest: Guest, storage: Storage, vmware: Vmware, progress, *groups: str, **policy
):
    """A VM on the first group that its agent holds, and `bare` on the last, held by VMware."""
    vms = (planned(guest.name, groups=groups[:1]), planned("bare", groups=groups[-1:]))
    means = Means({guest.name: guest}, storage, still, vmware)
    hold = HoldPolicy(ways=BOTH, **policy)
    return capture(Plan("r1", vms, ()), "atoll-r1", means, hold, progress)


def test_storage_that_never_answers_costs_nobody_more_than_the_lease(
    monkeypatch, short_lease
) -> None:
    monkeypatch.setattr(capture_module, "_LATE_STORAGE_SECONDS", 0.1)
    log: list[str] = []
    guest, vmware, storage, teller = Guest(log, "a"), Vmware(log), Dawdling(log, "prod"), Teller()
    with pytest.raises(StorageUnreachableError) as failure:
        capture_by_both_ways(guest, storage, vmware, teller, "prod", **short_lease)
    assert str(failure.value) == (
        "The storage did not answer when asked to snapshot LUN group prod, also not within 0.1 s "
        "after all guests were let go; see whether it is well. Should snapshot atoll-r1 appear "
        "later, the next run or `atoll cleanup` deletes it."
    )
    assert log[-4:] == ["freeze a", "asked prod", "thaw a", "remove bare"]
    assert guest.heard is False
    assert vmware.there == {}
    assert teller.notes == [
        ": nobody is held any more; waiting up to 0.1 s for the storage's snapshots of prod"
    ]
    storage.go_on.set()
    assert storage.went_on.wait(60)


def test_storage_that_answers_after_the_lease_proves_nothing_of_those_it_was_late_for(
    short_lease,
) -> None:
    """Even of a guest that says that it was held all the time: it was let go before."""
    log: list[str] = []
    guests, vmware = [Guest(log, "a"), Guest(log, "b")], Vmware(log)
    storage = Dawdling(log, "logs")
    teller = Teller("waiting", storage.go_on.set)
    vms = (
        planned("a", groups=("prod",)),
        planned("b", groups=("prod", "logs")),
        planned("bare", groups=("logs",)),
    )
    means = Means({guest.name: guest for guest in guests}, storage, still, vmware)
    hold = HoldPolicy(ways=BOTH, **short_lease)
    made = capture(Plan("r1", vms, ()), "atoll-r1", means, hold, teller)
    assert set(made.snapshots) == {"prod", "logs"}
    assert made.proofs["a"].consistency is Consistency.APP
    assert made.proofs["b"].consistency is Consistency.NONE
    assert made.proofs["b"].reasons[0] == "the storage snapshot was not there when the hold ended"
    assert made.proofs["bare"].consistency is Consistency.CRASH
    assert made.proofs["bare"].reasons == (
        "its VMware snapshot was removed before the storage snapshot was taken",
    )


def test_one_group_that_fails_and_one_that_never_answers(monkeypatch) -> None:
    monkeypatch.setattr(capture_module, "_LATE_STORAGE_SECONDS", 0.1)

    class Half(Dawdling):
        def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
            if group == "prod":
                raise StorageUnreachableError("the array is away")
            return super().snapshot_group(group, name)

    guest = Guest([], "a")
    storage = Half([], "logs")
    with pytest.raises(StorageUnreachableError, match="LUN group logs") as failure:
        capture_over([guest], storage, "prod", "logs")
    assert failure.value.__notes__ == ["the array is away"]
    assert guest.frozen is None
    storage.go_on.set()


def test_no_guest_waits_for_vcenter_to_remove_a_vmware_snapshot(monkeypatch) -> None:
    monkeypatch.setattr(vmware_hold, "_TELL_SECONDS", 0.05)
    log: list[str] = []
    back = threading.Event()

    class Away(Vmware):
        def remove(self, instance_uuid: str, name: str, deadline_seconds: float) -> None:
            assert back.wait(60)
            super().remove(instance_uuid, name, deadline_seconds)

    def vcenter_returns() -> None:
        log.append("told")
        back.set()

    teller = Teller("VMware", vcenter_returns)
    guest, vmware = Guest(log, "a"), Away(log)
    made = capture_by_both_ways(guest, Storage(log), vmware, teller, "prod")
    assert log[-4:] == ["snapshot prod", "thaw a", "told", "remove bare"]
    assert teller.notes == [
        "bare: nobody is held any more; waiting up to 300 s for vCenter to remove VMware snapshot "
        "atoll-r1"
    ]
    assert made.leftovers == ()


def test_guests_freeze_in_their_order_and_thaw_in_the_reverse() -> None:
    log: list[str] = []
    guests = [Guest(log, "db"), Guest(log, "other"), Guest(log, "app")]
    run(guests, Storage(log, guests), orders=(("app", "db"),))
    assert log[3] == "freeze app"
    assert sorted(log[4:6]) == ["freeze db", "freeze other"]
    assert log[-1] == "thaw app"


def test_the_first_refusal_in_an_order_spares_those_after_it() -> None:
    log: list[str] = []
    guests = [Guest(log, "db"), Guest(log, "app")]
    guests[1].freeze_error = HoldFailedError("app will not hold")
    with pytest.raises(HoldFailedError, match="app will not hold"):
        run(guests, Storage(log), orders=(("app", "db"),))
    assert "freeze db" not in log


BOTH = (Way.DIRECT, Way.VMWARE)


def test_a_guest_that_does_not_answer_is_held_by_a_vmware_snapshot() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    guests[1].prepare_error = AgentUnavailableError("b does not answer")
    vmware = Vmware(log)
    made = run(guests, Storage(log), vmware=vmware, ways=BOTH)
    order = [step for step in log if not step.startswith("prepare")]
    assert order == ["vmware b", "freeze a", "snapshot prod", "thaw a", "remove b"]
    assert (made.proofs["a"].way, made.proofs["a"].consistency) == ("direct", Consistency.APP)
    proof = made.proofs["b"]
    assert (proof.way, proof.consistency) == ("vmware", Consistency.FILESYSTEM)
    assert proof.fell_back == ("b does not answer",)
    assert proof.vmware is not None and proof.vmware.quiesced
    assert vmware.there == {}


def test_a_guest_that_cannot_be_frozen_is_held_the_next_way_in_another_hold() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    guests[1].freeze_error = HoldFailedError("b will not hold")
    made = run(guests, Storage(log), vmware=Vmware(log), ways=BOTH)
    assert log.count("snapshot prod") == 1
    assert guests[0].prepared == ["r1", "r1-1"]
    assert log.index("thaw a") < log.index("vmware b") < log.index("snapshot prod")
    assert made.proofs["b"].way == "vmware"
    assert made.proofs["b"].fell_back == ("b will not hold",)


def test_what_no_way_can_hold_fails_the_run_with_the_last_reason() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    guests[1].prepare_error = AgentUnavailableError("b does not answer")
    vmware = Vmware(log)
    vmware.error = VCenterOperationError("b has no room for a snapshot")
    with pytest.raises(VCenterOperationError, match="no room"):
        run(guests, Storage(log), vmware=vmware, ways=BOTH)
    assert "freeze a" not in log
    assert {"thaw a", "remove b"} <= set(log)
    made = run(guests, Storage(log), vmware=vmware, ways=BOTH, accept_less=True)
    proof = made.proofs["b"]
    assert (proof.way, proof.consistency) == ("", Consistency.CRASH)
    assert proof.reasons == ("b has no room for a snapshot",)
    assert proof.fell_back == ("b does not answer",)


def test_a_vmware_snapshot_that_is_not_quiesced_is_no_hold() -> None:
    vmware = Vmware([], quiesces=False)
    guest = Guest([], "a")
    with pytest.raises(HoldFailedError, match="did not quiesce"):
        run([guest], Storage([]), vmware=vmware, ways=(Way.VMWARE,))
    assert vmware.there == {}
    made = run([guest], Storage([]), vmware=vmware, ways=(Way.VMWARE,), accept_less=True)
    assert made.proofs["a"].consistency is Consistency.CRASH
    assert "did not quiesce" in made.proofs["a"].reasons[0]


def test_a_vmware_snapshot_that_will_not_go_is_told_and_spoils_nothing() -> None:
    vmware = Vmware([])
    vmware.stuck = True
    there = place("a", has_snapshot=True, disks=((2000, "ds1", "a/a-000001.vmdk"),))
    places = iter([place("a"), there])
    guest = Guest([], "a")
    made = run(
        [guest], Storage([]), lambda uuids: {"a": next(places)}, vmware=vmware, ways=(Way.VMWARE,)
    )
    assert made.proofs["a"].consistency is Consistency.FILESYSTEM
    assert "will not go" in made.leftovers[0]


def test_the_order_of_ways_is_the_policys() -> None:
    log: list[str] = []
    guest, vmware = Guest(log, "a"), Vmware(log)
    vmware.error = VCenterOperationError("not now")
    made = run([guest], Storage(log), vmware=vmware, ways=(Way.VMWARE, Way.DIRECT))
    assert (made.proofs["a"].way, made.proofs["a"].consistency) == ("direct", Consistency.APP)
    assert made.proofs["a"].fell_back == ("not now",)


@pytest.mark.parametrize(
    ("powered_on", "says"), [(True, "Hard disk 1 is non-persistent"), (False, "powered off")]
)
def test_a_disk_that_forgets_is_not_called_consistent_while_its_vm_runs(powered_on, says) -> None:
    vm = planned("a", powered_on=powered_on, mode="independent_nonpersistent")
    where = {"a": place("a", powered_on=powered_on)}
    means = Means({"a": Guest([], "a")}, Storage([]), lambda uuids: where, Vmware([]))
    proof = capture(Plan("r1", (vm,), ()), "atoll-r1", means, HoldPolicy(), Silent()).proofs["a"]
    assert proof.consistency is Consistency.CRASH
    assert says in proof.reasons[0]
