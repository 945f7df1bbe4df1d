"""The run journal: what is remembered over a crash, and one run at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError, RunConflictError
from atoll.service.journal import Journal, RunRecord

RECORD = RunRecord(run="r1", vms=("u1", "u2"), holds=("r1", "r1-1"))


def test_a_run_is_remembered_until_it_ends(tmp_path: Path) -> None:
    Journal(tmp_path).begin(RECORD)
    assert Journal(tmp_path).unfinished() == [RECORD]
    Journal(tmp_path).end("r1")
    Journal(tmp_path).end("r1")
    assert Journal(tmp_path).unfinished() == []


def test_a_record_cut_short_was_never_begun(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "runs" / "r0.tmp").write_text('{"run": "r0", "gro')
    assert journal.unfinished() == []


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "runs" / "r0.json").write_text('{"run": "r0", "gro')
    with pytest.raises(ConfigurationError, match="runs"):
        journal.unfinished()


def test_a_second_run_is_refused_while_one_is_alive(tmp_path: Path) -> None:
    with (
        Journal(tmp_path).exclusive(),
        pytest.raises(RunConflictError),
        Journal(tmp_path).exclusive(),
    ):
        raise AssertionError("both hold the site")
    with Journal(tmp_path).exclusive():
        pass


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from atoll.service.journal import Journal\n"
        "with Journal(Path(sys.argv[1])).exclusive():\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunConflictError), Journal(tmp_path).exclusive():
        raise AssertionError("both hold the site")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Journal(tmp_path).exclusive():
        pass
