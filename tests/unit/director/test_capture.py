"""Hold, snapshot, release: the order of things, and what each failure makes of the point."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from atoll.director import barrier
from atoll.director.capture import capture
from atoll.director.policy import HoldPolicy
from atoll.guests.interface import Frozen, Thawed
from atoll.model.consistency import ApplicationState, Consistency
from atoll.model.errors import (
    AgentUnavailableError,
    HoldFailedError,
    StorageUnreachableError,
    VCenterUnreachableError,
)
from atoll.model.inventory import Placement, VirtualDisk, VirtualMachine
from atoll.model.plan import Plan, PlannedDisk, PlannedVm
from atoll.model.progress import Silent
from atoll.model.storage import GroupSnapshot

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
        self.broken = ""
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

    def thaw(self, run: str) -> Thawed:
        self.log.append(f"thaw {self.name}")
        held = self.frozen == run and not self.broken
        self.frozen = None
        if self.thaw_error:
            raise self.thaw_error
        return Thawed(run, held, self.broken or ("" if held else "never held"), 100.0, 101.0)

    def status(self) -> object:
        raise AssertionError("not asked for")


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


def planned(name: str, powered_on: bool = True, groups: Sequence[str] = ("prod",)) -> PlannedVm:
    disk = VirtualDisk(2000, "Hard disk 1", "ds1", f"{name}/{name}.vmdk", 1, "persistent")
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


def run(guests: Sequence[Guest], storage: Storage, placement=still, *names: str, **policy):
    plan = Plan("r1", tuple(planned(n) for n in (names or [g.name for g in guests])), ())
    return capture(
        plan,
        {g.name: g for g in guests},
        storage,
        "atoll-r1",
        placement,
        HoldPolicy(**policy),
        Silent(),
    )


def test_all_are_frozen_before_the_snapshot_and_thawed_after() -> None:
    log: list[str] = []
    guests = [Guest(log, "a"), Guest(log, "b")]
    made = run(guests, Storage(log, guests))
    assert sorted(log[:2]) == ["prepare a", "prepare b"]
    assert sorted(log[2:4]) == ["freeze a", "freeze b"]
    assert log[4] == "snapshot prod"
    assert sorted(log[5:]) == ["thaw a", "thaw b"]
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


def test_a_vmware_snapshot_taken_during_the_hold_downgrades_the_point() -> None:
    places = iter([place("a"), *[place("a", has_snapshot=True)] * 9])
    proof = run([Guest([], "a")], Storage([]), lambda uuids: {"a": next(places)}, moves=0)
    assert proof.proofs["a"].consistency is Consistency.CRASH
    assert "VMware snapshot" in proof.proofs["a"].reasons[-1]


def test_a_vm_that_is_off_is_never_called_consistent() -> None:
    plan = Plan("r1", (planned("a", powered_on=False),), ())
    made = capture(
        plan,
        {},
        Storage([]),
        "atoll-r1",
        lambda uuids: {"a": place("a", powered_on=False)},
        HoldPolicy(),
        Silent(),
    )
    assert made.proofs["a"].consistency is Consistency.CRASH
    assert "powered off" in made.proofs["a"].reasons[0]


def capture_over(guests: Sequence[Guest], storage: Storage, *groups: str, agents=None, **policy):
    """One VM over several LUN groups, and the other guests on the first of them."""
    first, *others = guests
    vms = (planned(first.name, groups=groups), *(planned(g.name) for g in others))
    return capture(
        Plan("r1", vms, ()),
        {g.name: g for g in guests} if agents is None else agents,
        storage,
        "atoll-r1",
        still,
        HoldPolicy(**policy),
        Silent(),
    )


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

    def thaw(self, run: str) -> Thawed:
        self.asked_to_thaw.set()
        return super().thaw(run)


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
