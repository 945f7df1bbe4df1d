"""The run journal: what is remembered over a crash, who is alive, and whose turn it is."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atoll.model.consistency import Consistency, ConsistencyProof, GroupInstant
from atoll.model.errors import ConfigurationError, RunConflictError
from atoll.model.inventory import VirtualDisk, VirtualMachine
from atoll.model.plan import Plan, PlannedDisk, PlannedVm
from atoll.service.journal import CopyOrder, Journal, RunRecord

RECORD = RunRecord(run="r1", vms=("u1", "u2"), holds=("r1", "r1-1"))


def copying() -> RunRecord:
    """The same run, come to copying."""
    disk = VirtualDisk(2000, "Hard disk 1", "ds1", "a/a.vmdk", 4096, "persistent", below=("x",))
    vm = VirtualMachine("vm-1", "u1", "a", "esx1", True, False, "debian", (disk,), False, "[ds1] a")
    planned = PlannedVm(vm, (PlannedDisk(disk, "gold", "uuid", ("lun1", "lun2")),), True)
    proof = ConsistencyProof(
        *("a", Consistency.CRASH, ("why",), None, "gold", "s1", 1.0, 2.0, "esx1", "esx1"),
        instants=(GroupInstant("gold", 1.0, 2.0, 0.5),),
    )
    order = CopyOrder(
        Plan("r1", (planned,), ()), "s1", {"u1": proof}, {"u1": "r0-u1"}, (("gold", "s1"),)
    )
    return RunRecord(RECORD.run, RECORD.vms, RECORD.holds, order)


def dead(directory: Path) -> list[RunRecord]:
    with Journal(directory).dead() as records:
        return list(records)


def test_a_run_is_remembered_until_it_ends(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(RECORD)
    assert (dead(tmp_path), Journal(tmp_path).alive()) == ([], {"r1"})
    journal.abandon("r1")
    assert (dead(tmp_path), Journal(tmp_path).alive()) == ([RECORD], set())
    journal.end("r1")
    journal.end("r1")
    assert dead(tmp_path) == []


def test_a_run_that_ended_is_neither_alive_nor_dead(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(RECORD)
    journal.end("r1")
    assert (dead(tmp_path), journal.alive()) == ([], set())


def test_a_dead_run_is_cleared_by_one_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(RECORD)
    journal.abandon("r1")
    with journal.dead() as records:
        assert records == [RECORD]
        assert dead(tmp_path) == []
        journal.end("r1")
    assert dead(tmp_path) == []


def test_a_record_cut_short_was_never_begun(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "runs" / "r0.tmp").write_text('{"run": "r0", "gro')
    assert dead(tmp_path) == []
    assert journal.alive() == set()


@pytest.mark.parametrize("text", ['{"run": "r0", "gro', "[]", '{"run": "r0"}'])
def test_a_damaged_record_is_one_sentence(tmp_path: Path, text: str) -> None:
    Journal(tmp_path)
    (tmp_path / "runs" / "r0.json").write_text(text)
    with pytest.raises(ConfigurationError, match="runs"):
        dead(tmp_path)


def test_a_killed_run_is_dead_and_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from atoll.service.journal import Journal, RunRecord\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "journal.begin(RunRecord('r1', ('u1', 'u2'), ('r1', 'r1-1')))\n"
        "with journal.holding(['gold'], 1.0):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    journal = Journal(tmp_path)
    assert journal.alive() == {"r1"}
    with pytest.raises(RunConflictError, match="gold"), journal.holding(["gold"], 0.0):
        raise AssertionError("both hold the guests")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert dead(tmp_path) == [RECORD]
    with (
        journal.holding(["gold"], 0.0),
        pytest.raises(RunConflictError),
        Journal(tmp_path).holding(["silver", "gold"], 0.0),
    ):
        raise AssertionError("both hold the guests")


def test_holds_of_other_groups_do_not_wait_and_tidying_waits_for_all(tmp_path: Path) -> None:
    order: list[str] = []

    def tidy() -> None:
        with Journal(tmp_path).tidying():
            order.append("tidied")

    with Journal(tmp_path).holding(["gold"], 0.0), Journal(tmp_path).holding(["silver"], 0.0):
        tidying = threading.Thread(target=tidy)
        tidying.start()
        tidying.join(0.3)
        order.append("held")
        with pytest.raises(RunConflictError, match="gold"):
            waits = Journal(tmp_path).holding(["gold"], 0.0, lambda: order.append("waits"))
            waits.__enter__()
        with pytest.raises(RunConflictError, match="too long"), Journal(tmp_path).tidying(0.0):
            raise AssertionError("somebody tidies while a guest is held")
    tidying.join()
    assert order == ["held", "waits", "tidied"]
    with (
        Journal(tmp_path).tidying(),
        pytest.raises(RunConflictError, match="tidied"),
        Journal(tmp_path).holding(["gold"], 0.0),
    ):
        raise AssertionError("a guest is held while somebody tidies")


def test_what_a_run_copies_is_remembered_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(RECORD)
    journal.note(copying())
    assert Journal(tmp_path).alive() == {"r1"}, "it is locked under its new record too"
    assert journal.copying() == [copying()]
    journal.abandon("r1")
    assert dead(tmp_path) == [copying()]


def test_who_may_be_gone_on_with_is_left_to_whoever_does(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(copying())
    journal.abandon("r1")
    with journal.dead(lambda record: record.run == "r1") as records:
        assert records == []
        other = Journal(tmp_path)
        assert other.take("r1") == copying()
        other.abandon("r1")
    with journal.dead() as records:
        assert records == [copying()]
        assert Journal(tmp_path).take("r1", 0.0) is None


def test_one_alone_takes_a_run(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.begin(copying())
    assert second.take("r1", 0.0) is None
    first.abandon("r1")
    assert second.take("r1") == copying()
    assert first.take("r1", 0.0) is None
    assert dead(tmp_path) == []
    second.end("r1")
    assert first.take("r1") is None
    assert (first.copying(), first.last_seen("r1")) == ([], 0.0)


def test_a_run_is_seen_when_it_gets_further(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(copying())
    os.utime(tmp_path / "runs" / "r1.json", (1.0, 1.0))
    assert journal.last_seen("r1") == 1.0
    journal.touch("r1")
    assert journal.last_seen("r1") > 1.0


def test_an_order_of_another_version_is_no_order(tmp_path: Path) -> None:
    """It is cleared up after then, which is always right."""
    journal = Journal(tmp_path)
    journal.begin(copying())
    journal.abandon("r1")
    path = tmp_path / "runs" / "r1.json"
    path.write_text(path.read_text().replace('"snapshot"', '"snapshots"'))
    assert dead(tmp_path) == [RECORD]
