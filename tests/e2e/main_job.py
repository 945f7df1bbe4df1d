"""One round of the main job under load, through the command line, and what must be true of it."""

from dataclasses import dataclass
from typing import Any

from atoll_lab.guests.load import Committed
from atoll_lab.load import Loads
from live_lab import VMS, LiveLab

RATE = 20
"""Transactions a second: a constant load that leaves two cores room for everything else."""


@dataclass(frozen=True)
class Round:
    """A backup and what clients of both databases saw committed just before and just after it."""

    result: Any
    before: dict[str, Committed]
    after: dict[str, Committed]

    @property
    def run(self) -> str:
        """Its name."""
        return str(self.result["run"])

    def point(self, vm: str) -> Any:
        """The restore point of a VM."""
        (point,) = (point for point in self.result["points"] if point["vm"] == vm)
        return point

    def total(self, field: str) -> int:
        """Sum of a disk's field over all disks of the run."""
        return sum(disk[field] for point in self.result["points"] for disk in point["disks"])


def back_up(lab: LiveLab, loads: Loads, *options: str) -> Round:
    """Back both guests up while their databases work."""
    before = _committed(loads)
    result = lab.check("backup", *VMS, *options, "--json").json
    return Round(result, before, _committed(loads))


def assert_app_consistent(made: Round) -> None:
    """Both points are app-consistent, and the witness lies between what clients saw around the run."""
    for vm in VMS:
        proof = made.point(vm)["proof"]
        assert proof["consistency"] == "app", proof
        assert proof["reasons"] == []
        assert proof["hold"]["unbroken"] is True
        assert "/" in proof["hold"]["filesystems"]
        witness = witness_of(made.point(vm))
        before, after = made.before[vm], made.after[vm]
        assert before.highest <= witness.highest <= after.highest, (vm, before, witness, after)
        assert before.rows <= witness.rows <= after.rows, (vm, before, witness, after)
        # A load that stood still would make this prove nothing.
        assert before.rows < after.rows, vm
    assert "/var/lib/postgresql-wal" in made.point("db1")["proof"]["hold"]["filesystems"]


def assert_proven(lab: LiveLab, made: Round, vm: str) -> Any:
    """The point boots, its database says what it said in the hold, and had nothing to mend."""
    evidence = lab.check("prove", f"{vm}@{made.run}", "--json").json
    facts = evidence["facts"]
    state = _application(made.point(vm))
    label = f"{state['kind']} {state['name']}"
    assert evidence["passed"] is True, evidence
    assert facts[f"{label}: witness"] == state["witness"]
    assert facts[f"{label}: witness_as_held"] is True
    assert facts["repair_ran"] is False
    assert facts["filesystems_recovered"] == "", (
        "a journal was replayed, so something was not frozen"
    )
    replayed = facts["wal_replayed_bytes"]
    if vm == "db1":
        assert replayed < 1 << 20
    else:
        assert replayed == 0
    return evidence


def witness_of(point: Any) -> Committed:
    """What the database answered while it was held: `HIGHEST of ROWS`."""
    highest, rows = _application(point)["witness"].split(" of ")
    return Committed(int(highest), int(rows))


def _application(point: Any) -> Any:
    (state,) = point["proof"]["hold"]["applications"]
    assert state["held"] is True
    return state


def _committed(loads: Loads) -> dict[str, Committed]:
    return {"db1": loads.postgresql.committed(), "app1": loads.mariadb.committed()}
