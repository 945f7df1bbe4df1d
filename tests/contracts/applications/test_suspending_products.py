"""What every product owes that is held by a state of its server, over fakes of all of them."""

import json
import os
import signal
import subprocess
import sys

import pytest

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from vendor_benches import BENCHES, WITNESS, arguments_text, soon

LONG, SHORT = 30.0, 3.0

# Kills end in the same code for all products; one of each shape is enough for every day.
KILLED = [
    pytest.param(kind, marks=() if kind in {"ase", "db2", "hana"} else pytest.mark.soak)
    for kind in sorted(BENCHES)
]

KILLED_AGENT = """
import json, sys, time
from pathlib import Path
from atoll_agent.clock import Deadline
from atoll_agent.lifeline import Lifeline
kind, arguments, records = sys.argv[1:]
line = Lifeline(kind, "it", json.loads(arguments), Path(records))
line.open(Deadline(30))
line.hold({}, Deadline(30))
print("held", line.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=sorted(BENCHES))
def bench(request, tmp_path, monkeypatch):
    made = BENCHES[request.param](tmp_path)
    path = os.pathsep.join([str(made.fake.directory / "bin"), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    yield made
    made.fake.set(hang=[])
    assert soon(lambda: not list(tmp_path.glob("*.held"))), "a dead-man's process is left"
    assert soon(lambda: not made.is_held())


@pytest.fixture
def application(bench):
    made = bench.application()
    yield made
    made.close()


def held(application):
    application.open(Deadline(LONG))
    return application.hold(Deadline(LONG))


def test_it_is_held_from_the_hold_to_the_close_and_a_restored_one_says_the_same(bench, application):
    application.prepare(Deadline(LONG))
    assert not bench.is_held()
    application.open(Deadline(LONG))
    assert bench.is_held() == bench.product.early
    application.flush_again(Deadline(LONG))
    assert application.still_ready(Deadline(LONG))
    answer = application.hold(Deadline(LONG))
    assert answer.held, answer.detail
    assert bench.is_held()
    assert application.still_held(Deadline(LONG)) == ""
    application.close()
    assert soon(lambda: not bench.is_held())
    application.close()
    testimony = application.testify(Deadline(LONG))
    if bench.kind == "domino":
        assert not testimony.answering  # no process of that name runs here
        return
    assert testimony.answering, testimony.detail
    assert "42" in (answer.witness or "")
    assert testimony.witness == answer.witness
    assert answer.position
    assert application.remark(Deadline(LONG)).startswith("held by ")


def test_a_disarmed_one_is_let_go(bench, application):
    application.open(Deadline(LONG))
    application.close()
    assert soon(lambda: not bench.is_held())


REFUSALS = {
    "oracle": "ORA-01031: insufficient privileges",
    "db2": "SQL1092N  The requested command failed: insufficient privileges",
    "hana": "258: insufficient privileges: Not authorized SQLSTATE: HY000",
}


def test_a_server_that_refuses_is_not_held_and_says_why(bench, application):
    refusal = REFUSALS.get(bench.kind, "insufficient privileges")
    bench.fake.set(refuse={bench.hold_command: refusal})
    try:
        application.open(Deadline(LONG))
        answer = application.hold(Deadline(LONG))
    except ApplicationError as error:
        assert bench.product.early
        assert "insufficient privileges" in str(error)
    else:
        assert not answer.held
        assert "insufficient privileges" in answer.detail
    application.close()
    assert soon(lambda: not bench.is_held())


def test_a_hold_that_hangs_ends_with_its_budget_and_leaves_nothing(bench, application):
    bench.fake.set(hang=[bench.hold_command])
    try:
        application.open(Deadline(SHORT if bench.product.early else LONG))
        assert not application.hold(Deadline(SHORT)).held
    except ApplicationError:
        assert bench.product.early
    application.close()
    bench.fake.set(hang=[])
    assert soon(lambda: not bench.is_held())


def test_who_lets_go_in_between_breaks_the_hold(bench, application):
    assert held(application).held
    if bench.kind == "domino":
        (bench.records / "notesdata/dominobackup_snapshot.lck").write_text("DONE\n")
    else:
        bench.fake.set(**bench.let_go)
    assert "somebody else" in application.still_held(Deadline(LONG))


def test_a_hold_of_somebody_else_is_neither_taken_over_nor_ended(bench, application):
    others = {
        "oracle": {"in_backup_since": 7},
        "mssql": {"suspended": {"orders": 1.0}},
        "db2": {"suspended": ["STOCK"]},
        "informix": {"blocked": True},
        "hana": {"catalogue": [{"id": 5, "comment": "theirs", "state": "prepared"}]},
        "ase": {"tags": {"theirs": ["db3"]}},
        "maxdb": {"suspended": True},
        "domino": {"in_backup_mode": True},
    }[bench.kind]
    bench.fake.set(**others)
    if bench.kind == "domino":
        (bench.records / "notesdata/dominobackup_snapshot.lck").write_text("DOMINO-DONE\n")
    try:
        application.open(Deadline(LONG))
        assert not application.hold(Deadline(LONG)).held
    except ApplicationError:
        pass
    application.close()
    state = bench.fake.state()
    assert {key: state[key] for key in others} == others
    bench.fake.set(
        **{**bench.let_go, **({"in_backup_mode": False} if bench.kind == "domino" else {})}
    )


@pytest.mark.parametrize("bench", KILLED, indirect=True)
def test_a_killed_watchdog_session_lets_go(bench, application):
    (fuse,) = application.open(Deadline(LONG))
    assert application.hold(Deadline(LONG)).held
    os.kill(fuse, signal.SIGKILL)
    assert soon(lambda: not bench.is_held())
    assert application.still_held(Deadline(LONG))


@pytest.mark.parametrize("bench", KILLED, indirect=True)
def test_a_killed_client_does_not_keep_it_held(bench, application):
    if bench.kind == "domino":
        pytest.skip("what runs is the server's own task, and no client of the agent's")
    assert held(application).held
    for pid in clients(bench):
        os.kill(pid, signal.SIGKILL)
    application.still_held(Deadline(LONG))
    application.close()
    assert soon(lambda: not bench.is_held())


@pytest.mark.parametrize("bench", KILLED, indirect=True)
def test_a_killed_agent_lets_go(bench):
    agent = subprocess.Popen(
        [sys.executable, "-c", KILLED_AGENT, bench.kind, arguments_text(bench), str(bench.records)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "agent"},
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline().startswith(b"held")
        assert bench.is_held()
    finally:
        agent.kill()
        agent.wait()
    assert soon(lambda: not bench.is_held())


@pytest.mark.parametrize("bench", KILLED, indirect=True)
def test_when_agent_and_dead_man_are_killed_the_next_agent_lets_go(bench):
    agent = subprocess.Popen(
        [sys.executable, "-c", KILLED_AGENT, bench.kind, arguments_text(bench), str(bench.records)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "agent"},
    )
    assert agent.stdout is not None
    dead_man = int(agent.stdout.readline().split()[1])
    os.kill(dead_man, signal.SIGKILL)
    agent.kill()
    agent.wait()
    assert bench.is_held()
    bench.application().recover(Deadline(LONG))
    assert not bench.is_held() or soon(lambda: not bench.is_held())
    bench.application().recover(Deadline(LONG))


def test_a_witness_that_is_no_query_costs_only_itself(bench, application):
    if bench.kind == "domino":
        pytest.skip("it has no witness")
    arguments = {**bench.arguments, "witness": "HOST rm -rf /"}
    made = type(application)("it", bench.product, arguments, bench.records)
    try:
        made.open(Deadline(LONG))
        answer = made.hold(Deadline(LONG))
        assert answer.held
        assert answer.witness is None
        assert "one line that begins with SELECT" in answer.detail
    finally:
        made.close()
    assert WITNESS not in json.dumps(arguments)


def clients(bench):
    """The processes of the fake's clients that are running now."""
    folder = str(bench.fake.directory / "bin").encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as stream:
                    if folder in stream.read():
                        found.append(int(entry))
            except OSError:
                continue
    return found
