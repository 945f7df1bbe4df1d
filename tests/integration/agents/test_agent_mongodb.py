"""MongoDB's lock, taken and given back against a fake of the server (no real one can be had here)."""

import os
import signal
import ssl

import pytest
from module_guest import Writer, agent, alive, certificate
from private_guest import await_that

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.modules import mongodb
from atoll_agent.modules.mongoclient import Connection, Endpoint
from mongod import FakeMongod

PASSWORD = "long and secret"
ACTIONS = {"fsync", "unlock", "inprog", "insert"}


class Guest:
    def __init__(self, base, **more):
        self.sock = base / "mongodb-27017.sock"
        self.server = FakeMongod(self.sock, {"atoll": (PASSWORD, ACTIONS)}, **more)
        self.password = base / "password"
        self.password.touch(0o600)
        self.password.write_text(PASSWORD)
        self.name = f"27017-{os.getpid()}-{base.name}"

    def entry(self, **more):
        return {
            "kind": "mongodb",
            "name": self.name,
            "socket": str(self.sock),
            "user": "atoll",
            "password_file": str(self.password),
            "database": "shop",
            "witness": '{"count": "orders"}',
            **more,
        }

    def connect(self):
        return Connection(Endpoint(str(self.sock), 0, "atoll", PASSWORD), Deadline(60))

    def writer(self):
        connection = self.connect()

        def write(number):
            order = {"insert": "orders", "documents": [{"number": number}]}
            connection.ask(Deadline(120), "shop", order)

        return Writer(write)


@pytest.fixture
def guest(tmp_path):
    found = Guest(tmp_path)
    yield found
    found.server.close()


def test_a_hold_from_prepare_to_thaw_under_load(guest):
    with guest.writer() as writer, agent([guest.entry()], []) as holding:
        writer.goes_on()
        holding.prepare("a")
        assert guest.server.flushes == 2
        [state] = holding.freeze("a")["applications"]
        assert (state["held"], state["detail"]) == (True, "")
        before = writer.acknowledged
        assert state["witness"] == str(guest.server.written)
        assert state["position"] == f"optime 1700000000:{guest.server.written + 1} term 1"
        assert guest.server.lock_count == 1
        assert writer.acknowledged == before
        thawed = holding.thaw("a")
        assert (thawed["held"], thawed["reason"]) == (True, "")
        assert guest.server.lock_count == 0
        writer.goes_on()


def test_a_killed_agent_leaves_no_lock(guest):
    with guest.writer() as writer, agent([guest.entry()], []) as holding:
        assert holding.freeze("a")["applications"][0]["held"]
        left = holding.dead_men()
        holding.kill()
        writer.goes_on()
        await_that(lambda: not alive(left), "its dead-man's process leaves")
    assert guest.server.lock_count == 0


def test_a_stopped_agent_cannot_keep_the_lock_beyond_its_lease(guest):
    with guest.writer() as writer, agent([guest.entry()], []) as holding:
        holding.freeze("a", lease=1)
        os.kill(holding.process.pid, signal.SIGSTOP)
        writer.goes_on()
        os.kill(holding.process.pid, signal.SIGCONT)
        thawed = holding.thaw("a")
        assert (thawed["held"], "lease of 1 s ended" in thawed["reason"]) == (False, True)


def test_what_everybody_killed_left_locked_the_next_agent_unlocks(guest):
    with agent([guest.entry()], []) as holding:
        holding.freeze("a")
        os.kill(holding.process.pid, signal.SIGSTOP)
        for pid in holding.dead_men():
            os.kill(pid, signal.SIGKILL)
        holding.kill()
        assert guest.server.lock_count == 1
        holding.start()
        assert holding.order("recover") == [None]
        assert guest.server.lock_count == 0
        # Nothing is left over now, so a lock of somebody else's is none of ours.
        guest.connect().ask(Deadline(60), "admin", {"fsync": 1, "lock": True})
        assert holding.order("recover") == [None]
        assert guest.server.lock_count == 1


def test_an_unlock_that_fails_is_repeated(guest):
    with guest.writer() as writer, agent([guest.entry()], []) as holding:
        holding.freeze("a")
        guest.server.refuse_unlocks = 3
        holding.thaw("a")
        writer.goes_on()
    assert guest.server.lock_count == 0


def test_locks_of_others_stay_and_are_told_of(guest):
    guest.connect().ask(Deadline(60), "admin", {"fsync": 1, "lock": True})
    with agent([guest.entry()], []) as holding:
        assert "locked by something else now" in holding.order("remark")[0]
        [state] = holding.freeze("a")["applications"]
        assert state["held"]
        assert "must unlock it itself" in state["detail"]
        assert holding.thaw("a")["held"]
    assert guest.server.lock_count == 1


def test_an_unlock_by_somebody_else_breaks_the_hold(guest):
    with guest.writer() as writer, agent([guest.entry()], []) as holding:
        holding.freeze("a")
        guest.connect().ask(Deadline(60), "admin", {"fsyncUnlock": 1})
        writer.goes_on()
        thawed = holding.thaw("a")
        assert not thawed["held"]
        assert "no longer locked" in thawed["reason"]


def test_writes_under_a_lock_that_was_given_and_taken_are_noticed(guest):
    with guest.writer() as writer, agent([guest.entry()], []) as holding:
        holding.freeze("a")
        ours = guest.connect()
        ours.ask(Deadline(60), "admin", {"fsyncUnlock": 1})
        writer.goes_on()
        ours.ask(Deadline(60), "admin", {"fsync": 1, "lock": True})
        assert "written to while it was locked" in holding.thaw("a")["reason"]
    assert guest.server.lock_count == 0


@pytest.mark.parametrize("lock_timeout", ["known", "ignored", "refused"])
def test_a_long_write_gives_no_hold_and_leaves_no_lock(tmp_path, lock_timeout):
    """An older server goes on waiting for the writer and locks when nobody wants it any more."""
    guest = Guest(tmp_path, lock_timeout=lock_timeout)
    with agent([guest.entry()], []) as holding:
        holding.prepare("a")
        with guest.server.long_write():
            [state] = holding.freeze("a", budget=5)["applications"]
            assert not state["held"]
        with guest.writer() as writer:
            writer.goes_on()
        await_that(lambda: guest.server.lock_count == 0, "it is unlocked")
        holding.thaw("a")
        assert holding.freeze("b")["applications"][0]["held"]
        holding.thaw("b")
    assert guest.server.lock_count == 0
    guest.server.close()


def test_a_server_that_goes_away_takes_its_lock_along(tmp_path):
    (tmp_path / "other").mkdir()
    other = Guest(tmp_path / "other")
    with agent([other.entry()], []) as holding:
        holding.freeze("a")
        other.server.close()
        thawed = holding.thaw("a")
        assert not thawed["held"]
        assert holding.order("recover") == [None]


def test_what_is_missing_is_said(guest):
    bare = {
        key: value for key, value in guest.entry().items() if key not in {"user", "password_file"}
    }
    with agent([bare], []) as holding:
        assert "name a user who may" in holding.order("remark")[0]
    guest.server.users["atoll"] = (PASSWORD, {"insert"})
    with agent([guest.entry()], []) as holding:
        assert "name a user who may" in holding.order("remark")[0]
    guest.password.write_text("wrong")
    with agent([guest.entry()], []) as holding:
        said = holding.order("remark")[0]
        assert "does not let atoll in" in said
        assert "wrong" not in said


def test_a_server_that_speaks_tls_alone(tmp_path):
    crt, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    guest = Guest(tmp_path, tls=context)
    with agent([guest.entry(tls_authority=str(crt))], []) as holding:
        assert holding.freeze("a")["applications"][0]["held"]
        assert guest.server.lock_count == 1
        assert holding.thaw("a")["held"]
    with agent([guest.entry()], []) as holding:
        assert "cannot be held" in holding.order("remark")[0]
    assert guest.server.lock_count == 0
    guest.server.close()


def test_testimony_and_discovery(guest, tmp_path):
    guest.connect().ask(Deadline(60), "shop", {"insert": "orders", "documents": [{"n": 1}]})
    listing = tmp_path / "unix"
    listing.write_text(f"Num RefCount\n0: 2 0 10000 1 01 99 {guest.sock}\n0: 3 0 0 1 03 98 @x\n")
    entry = guest.entry(name="27017")
    config = ApplicationConfig(entry.pop("kind"), entry.pop("name"), entry)
    [found] = mongodb.discover([config], True, listing)
    testimony = found.testify(Deadline(60))
    assert (testimony.answering, testimony.witness) == (True, "1")
    assert found.remark(Deadline(60)) == "held by fsyncLock"


@pytest.mark.parametrize(
    "witness", ["not JSON", '{"drop": "orders"}', '{"aggregate": "orders"}', "[1]"]
)
def test_a_witness_that_could_write_is_not_run(guest, witness):
    with agent([guest.entry(witness=witness)], []) as holding:
        [state] = holding.freeze("a")["applications"]
        assert (state["held"], state["witness"]) == (True, None)
        assert "the witness did not answer" in state["detail"]
        assert holding.thaw("a")["held"]
