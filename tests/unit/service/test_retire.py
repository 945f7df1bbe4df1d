"""Which snapshots stay, and what a dead run's record leads to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.guests.interface import Thawed
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.errors import AgentUnavailableError
from atoll.model.inventory import Inventory, LeftOutVm, VirtualMachine
from atoll.model.points import RestorePoint
from atoll.model.storage import GroupSnapshot, LunGroup
from atoll.model.vmware import LeftoverSnapshot
from atoll.service.journal import Journal, RunRecord
from atoll.service.pins import Pins
from atoll.service.retire import (
    clean_up,
    needed_snapshots,
    points_of_known_vms,
    retire_snapshots,
)


def point(vm: str, run: str, at: float, group: str = "prod") -> RestorePoint:
    snapshot = f"atoll-1-{run}"
    proof = ConsistencyProof(
        vm, Consistency.CRASH, (), None, group, snapshot, at, at, "esx1", "esx1"
    )
    return RestorePoint(
        f"{run}-{vm}", run, vm, vm, at, group, snapshot, False, proof, (), "", "debian"
    )


@dataclass
class Storage:
    """The calls cleaning up makes."""

    names: dict[str, set[str]]
    over: list[str] = field(default_factory=list)

    def expire_snapshots(self) -> list[str]:
        gone, self.over = self.over, []
        return gone

    def snapshots(self, group: str) -> list[GroupSnapshot]:
        return [
            GroupSnapshot(group, name, 0, 0, 0, ()) for name in sorted(self.names.get(group, set()))
        ]

    def delete_snapshot(self, group: str, name: str) -> None:
        self.names.get(group, set()).discard(name)

    def groups(self) -> list[LunGroup]:
        return [LunGroup("prod", ())]

    def reconcile(self) -> list[str]:
        return []


class Guest:
    def __init__(self, answers: bool = True) -> None:
        self.answers, self.thawed = answers, list[str]()

    def thaw(self, run: str, snapshot: bool | None = None) -> Any:
        if not self.answers:
            raise AgentUnavailableError("away")
        self.thawed.append(run)
        return Thawed(run, False, "the lease ended", None, 0.0)


class VmwareSnapshots:
    """The calls that clearing what runs left makes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def leftovers(self) -> tuple[LeftoverSnapshot, ...]:
        return tuple(LeftoverSnapshot(f"uuid-{name}", name, name, 0.0) for name in self.names)

    def remove(self, instance_uuid: str, name: str, deadline_seconds: float) -> None:
        self.names.remove(name)


def begin(journal: Journal, *vms: str) -> None:
    """A run r2 that died."""
    journal.begin(RunRecord("r2", vms, ("r2", "r2-1")))
    journal.abandon("r2")


def test_each_vms_newest_point_keeps_its_snapshot() -> None:
    points = [point("a", "r1", 1), point("b", "r1", 1), point("a", "r2", 2)]
    assert needed_snapshots(points) == {("prod", "atoll-1-r1"), ("prod", "atoll-1-r2")}
    assert needed_snapshots([*points, point("b", "r3", 3)]) == {
        ("prod", "atoll-1-r2"),
        ("prod", "atoll-1-r3"),
    }


def test_a_vm_is_gone_when_vcenter_neither_has_it_nor_leaves_it_out() -> None:
    here = VirtualMachine("vm-1", "here", "here", "esx1", True, False, "debian", (), False, "")
    inventory = Inventory((), (), (here,), (LeftOutVm("away", "disconnected"),))
    points = [point(name, "r1", 1) for name in ("here", "away", "gone")]
    assert points_of_known_vms(points, inventory) == points[:2]


def test_retiring_leaves_what_is_needed_and_what_is_not_ours(tmp_path: Path) -> None:
    storage = Storage({"prod": {"atoll-1-r1", "atoll-1-r2", "before-upgrade", "atoll-2-r9"}})
    assert retire_snapshots(storage, "atoll-1-", [point("a", "r2", 2)], Pins(tmp_path)) == 1
    assert storage.names["prod"] == {"atoll-1-r2", "before-upgrade", "atoll-2-r9"}


def test_what_somebody_reads_stays_until_they_are_done(tmp_path: Path) -> None:
    storage, pins = Storage({"prod": {"atoll-1-r1", "atoll-1-r2"}}), Pins(tmp_path)
    with Pins(tmp_path).reading([("prod", "atoll-1-r1")]):
        assert retire_snapshots(storage, "atoll-1-", [], pins) == 1
        assert storage.names["prod"] == {"atoll-1-r1"}
    assert retire_snapshots(storage, "atoll-1-", [], pins) == 1
    assert storage.names["prod"] == set()


def test_a_dead_runs_snapshot_and_hold_are_cleared(tmp_path: Path) -> None:
    journal, guest = Journal(tmp_path), Guest()
    begin(journal, "a", "gone")
    storage = Storage({"prod": {"atoll-1-r1", "atoll-1-r2"}})
    done = clean_up(
        storage,
        journal,
        {"a": guest},
        "atoll-1-",
        lambda: [point("a", "r1", 1)],
        Pins(tmp_path),
        None,
    )
    assert storage.names["prod"] == {"atoll-1-r1"}
    assert guest.thawed == ["r2", "r2-1"]
    assert not list((tmp_path / "runs").iterdir())
    assert any("r2" in line for line in done)


def test_a_run_that_died_after_its_commit_keeps_its_snapshot(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    begin(journal, "a")
    storage = Storage({"prod": {"atoll-1-r2"}})
    clean_up(storage, journal, {}, "atoll-1-", lambda: [point("a", "r2", 2)], Pins(tmp_path), None)
    assert storage.names["prod"] == {"atoll-1-r2"}


def test_a_dead_runs_vmware_snapshot_is_removed_and_a_live_ones_stays(tmp_path: Path) -> None:
    journal, vmware = Journal(tmp_path), VmwareSnapshots(["atoll-r1", "atoll-r2", "atoll-r2-1"])
    begin(journal, "a")
    journal.begin(RunRecord("r1", ("b",), ("r1",)))
    clean_up(Storage({}), Journal(tmp_path), {}, "atoll-1-", list, Pins(tmp_path), vmware)
    assert vmware.names == ["atoll-r1"]


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    journal, guest = Journal(tmp_path), Guest()
    journal.begin(RunRecord("r2", ("a",), ("r2",)))
    storage = Storage({"prod": {"atoll-1-r2"}})
    with Pins(tmp_path).reading([("prod", "atoll-1-r2")]):
        assert (
            clean_up(
                storage, Journal(tmp_path), {"a": guest}, "atoll-1-", list, Pins(tmp_path), None
            )
            == []
        )
    assert (guest.thawed, journal.alive()) == ([], {"r2"})
    assert storage.names["prod"] == {"atoll-1-r2"}


def test_a_guest_that_does_not_answer_does_not_stop_the_cleaning(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    begin(journal, "a")
    storage = Storage({"prod": {"atoll-1-r2"}})
    done = clean_up(
        storage, journal, {"a": Guest(answers=False)}, "atoll-1-", list, Pins(tmp_path), None
    )
    assert storage.names["prod"] == set()
    assert any("did not answer" in line for line in done)
    assert not list((tmp_path / "runs").iterdir())
