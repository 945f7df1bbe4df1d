"""The restore test's verdict and its facts, with a witness that needs no guest."""

import json
import socket
import threading
from contextlib import contextmanager

import pytest

from atoll.model.consistency import ApplicationState, Consistency, ConsistencyProof, Hold
from atoll.model.points import RestorePoint
from atoll.model.progress import Silent
from atoll.recovery import prove as module
from atoll.recovery.accelerator import Accelerator
from atoll.recovery.prove import prove

HELD = ApplicationState("postgresql", "15/main", True, "0/100", "42", 0.2)


def point(hold_applications=(HELD,), with_agent=True):
    hold = Hold("r1", 0.9, 1.0, 1.5, 10.0, True, "", tuple(hold_applications), ("/",), 0.0, 0.01)
    proof = ConsistencyProof(
        "db1", Consistency.APP, (), hold if with_agent else None, "g", "s", 1.1, 1.2, "a", "a"
    )
    return RestorePoint(
        "p1", "r1", "db1", "uuid", 1.1, "g", "s", False, proof, (), "", "debian12_64Guest"
    )


def application(**changes):
    return {
        "kind": "postgresql",
        "name": "15/main",
        "answering": True,
        "witness": "42",
        "wal_replayed_bytes": 8192,
        "repair_ran": False,
        "position": "0/100",
        "detail": "",
    } | changes


def result(*applications, recovered=False):
    root = {"mount": "/", "source": "/dev/vda1", "fstype": "ext4", "recovered": recovered}
    data = {"mount": "/data", "source": "/dev/vdb", "fstype": "ext4", "recovered": False}
    return {
        "guest_time": 1.0,
        "uptime_seconds": 8.0,
        "filesystems": [root, data],
        "applications": list(applications),
    }


class FakeSandbox:
    """Stands for a booted guest whose agent gives `results` one after the other, the last for ever."""

    accelerator = Accelerator.TCG
    unprivileged = True

    def __init__(self, results=(), serial="", off=False):
        self.witness, self._guest = socket.socketpair()
        self.asked = 0
        self._results, self._serial, self._off = list(results), serial, off
        self._thread = threading.Thread(target=self._testify, daemon=True)
        self._thread.start()

    def _testify(self):
        with self._guest.makefile("rb") as questions:
            for line in questions:
                answer = (
                    self._results[min(self.asked, len(self._results) - 1)]
                    if (self._results)
                    else None
                )
                self.asked += 1
                if answer is not None:
                    reply = {"id": json.loads(line)["id"], "result": answer}
                    self._guest.sendall(json.dumps(reply).encode() + b"\n")

    def ended(self):
        return self._off

    def serial_tail(self):
        return self._serial

    def complaints(self):
        return "qemu: said this"

    def close(self):
        self.witness.close()
        self._thread.join(10)
        self._guest.close()


@pytest.fixture
def sandbox(monkeypatch):
    made = []

    def use(**settings):
        fake = FakeSandbox(**settings)
        made.append(fake)

        @contextmanager
        def opened(disks, workdir, limits):
            fake.disks = disks
            yield fake

        monkeypatch.setattr(module, "open_sandbox", opened)
        return fake

    yield use
    for fake in made:
        fake.close()


def run(tmp_path, restored=None, timeout=20.0):
    return prove(restored or point(), [("disk", "/base.raw")], timeout, tmp_path, Silent())


def test_a_database_that_answers_proves_the_point(tmp_path, sandbox):
    fake = sandbox(results=[result(application())])
    evidence = run(tmp_path)
    assert evidence.passed
    assert [disk.base for disk in fake.disks] == ["/base.raw"]
    facts = evidence.facts
    assert facts["evidence"] == "agent"
    assert facts["wal_replayed_bytes"] == 8192
    assert facts["repair_ran"] is False
    assert facts["filesystems"] == "/, /data"
    assert facts["filesystems_recovered"] == ""
    assert facts["postgresql 15/main: witness_as_held"] is True
    assert "serial_tail" not in facts


def test_a_journal_replayed_on_what_was_frozen_clean_fails_the_test(tmp_path, sandbox):
    sandbox(results=[result(application(), recovered=True)])
    evidence = run(tmp_path)
    assert not evidence.passed
    assert evidence.summary == "The journal of / was replayed although it was frozen clean."
    assert evidence.facts["filesystems_recovered"] == "/"


def test_it_waits_until_the_database_has_recovered(tmp_path, sandbox):
    starting = application(answering=False, detail="the database system is starting up")
    fake = sandbox(results=[result(), result(starting), result(application())])
    assert run(tmp_path).passed
    assert fake.asked == 3


def test_an_application_that_was_held_and_is_gone_fails_the_test(tmp_path, sandbox):
    sandbox(results=[result()])
    evidence = run(tmp_path, timeout=3.0)
    assert not evidence.passed
    assert "postgresql 15/main was not found" in evidence.summary


def test_the_reason_why_a_database_does_not_answer_is_kept(tmp_path, sandbox):
    broken = application(answering=False, detail="invalid checkpoint record")
    sandbox(results=[result(broken)], serial="last words")
    evidence = run(tmp_path, timeout=3.0)
    assert not evidence.passed
    assert "invalid checkpoint record" in evidence.summary
    assert evidence.facts["serial_tail"] == "last words"
    assert evidence.facts["qemu_said"] == "qemu: said this"


def test_a_witness_that_differs_fails_the_test(tmp_path, sandbox):
    sandbox(results=[result(application(witness="41", position="0/90"))])
    evidence = run(tmp_path)
    assert not evidence.passed
    assert evidence.facts["postgresql 15/main: witness_as_held"] is False
    assert "DIFFERS" in evidence.summary


def test_replayed_bytes_are_added_up_and_unknown_stays_unknown(tmp_path, sandbox):
    other = application(name="15/second", wal_replayed_bytes=8)
    silent = application(name="15/third", wal_replayed_bytes=None)
    sandbox(results=[result(application(), other, silent)])
    assert run(tmp_path).facts["wal_replayed_bytes"] == 8200
    sandbox(results=[result(application(wal_replayed_bytes=None))])
    assert run(tmp_path).facts["wal_replayed_bytes"] is None


def test_a_guest_that_turns_itself_off_fails_at_once(tmp_path, sandbox):
    sandbox(off=True, serial="Kernel panic - not syncing")
    evidence = run(tmp_path, timeout=600.0)
    assert not evidence.passed
    assert "was off" in evidence.summary
    assert "Kernel panic" in str(evidence.facts["serial_tail"])


def test_a_login_prompt_is_weaker_evidence_for_a_guest_without_agent(
    tmp_path, sandbox, monkeypatch
):
    monkeypatch.setattr(module, "AGENT_GRACE_SECONDS", 0.5)
    sandbox(serial="Debian GNU/Linux 12 db1 ttyS0\n\ndb1 login: ")
    evidence = run(tmp_path, point(with_agent=False))
    assert evidence.passed
    assert evidence.facts["evidence"] == "login-prompt"
    assert "no agent" in evidence.summary


def test_a_login_prompt_does_not_do_where_the_agent_held_the_guest(tmp_path, sandbox, monkeypatch):
    monkeypatch.setattr(module, "AGENT_GRACE_SECONDS", 0.1)
    sandbox(serial="db1 login: ")
    evidence = run(tmp_path, timeout=3.0)
    assert not evidence.passed
    assert evidence.facts["evidence"] == "none"
    assert "did not speak up" in evidence.summary


def test_an_agent_that_speaks_after_the_prompt_is_preferred(tmp_path, sandbox):
    sandbox(results=[None, result(application())], serial="db1 login: ")
    module_silence, module.SILENCE_SECONDS = module.SILENCE_SECONDS, 0.5
    try:
        evidence = run(tmp_path, point(with_agent=False))
    finally:
        module.SILENCE_SECONDS = module_silence
    assert evidence.facts["evidence"] == "agent"
