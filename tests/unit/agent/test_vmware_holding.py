"""Holds that VMware Tools asks for: what is held, let go and told, whoever dies or is late."""

import threading
import time
from dataclasses import replace

import pytest

from atoll.guests.account import read_account
from atoll_agent.application import HeldApplication
from atoll_agent.keeper import Keeper
from atoll_agent.mounts import Mount
from atoll_agent.vmware import holding as module
from atoll_agent.vmware.account import MAX_BYTES, Account
from atoll_agent.vmware.holding import RESTARTED, VmwareHolding
from atoll_agent.vmware.ledger import Ledger, boot_id
from atoll_agent.vmware.times import VmwareTimes

TIMES = VmwareTimes(5.0, 10.0, 60.0, 300.0)


class Application:
    """Holds when it is told to, and tells whether it was let go."""

    kind, name = "fake", "one"

    def __init__(self):
        self.refusal = ""
        self.delay = 0.0
        self.holds = 0
        self.closed = threading.Event()

    def prepare(self, deadline):
        pass

    def open(self, deadline):
        self.closed.clear()
        return []

    def flush_again(self, deadline):
        pass

    def still_ready(self, deadline):
        return True

    def hold(self, deadline):
        time.sleep(self.delay)
        self.holds += 1
        return HeldApplication(self.kind, self.name, not self.refusal, "7", "42", 0.0, self.refusal)

    def still_held(self, deadline):
        return ""

    def close(self):
        self.closed.set()


class Guest:
    """The parts that outlive an agent, and agents one after the other."""

    def __init__(self, directory):
        self.application = Application()
        self.ledger = Ledger(directory)
        self.published = []
        self.mounts = []
        self.dead_man = threading.Event()
        self.keepers = []

    def agent(self, times=TIMES):
        keeper = Keeper(lambda: [self.application], list)
        self.keepers.append(keeper)
        return VmwareHolding(
            keeper,
            lambda: self.mounts,
            times,
            self.ledger,
            lambda text: self.published.append(read_account(text)),
            self.dead_man.set,
        )


@pytest.fixture
def guest(tmp_path):
    guest = Guest(tmp_path / "run")
    yield guest
    for keeper in guest.keepers:
        keeper.stop()


def test_an_unbroken_hold_is_told_as_one_that_the_director_can_read(guest):
    agent = guest.agent()
    agent.freeze()
    assert guest.application.holds == 1
    assert not guest.application.closed.is_set()

    told = read_account(agent.thaw(failed=False))

    assert guest.application.closed.is_set()
    assert told == guest.published[-1] == read_account(agent.account())
    assert (told.held, told.reason, told.number, told.boot) == (True, "", 1, boot_id())
    assert told.began_at <= told.held_at <= told.ended_at
    [application] = told.applications
    assert (application.held, application.position, application.witness) == (True, "7", "42")


def test_vcenter_hears_of_a_hold_before_anything_is_held(guest):
    agent = guest.agent()
    agent._publish = lambda text: guest.published.append(
        (read_account(text), guest.application.holds)
    )
    agent.freeze()
    [(told, holds)] = guest.published
    assert holds == 0
    assert (told.held, told.held_at, told.ended_at, told.number) == (False, None, None, 1)


def test_an_application_that_refuses_is_told_with_its_reason(guest):
    guest.application.refusal = "a transaction was open"
    agent = guest.agent()
    agent.freeze()
    told = read_account(agent.thaw(failed=False))
    [application] = told.applications
    assert told.held
    assert (application.held, application.detail) == (False, "a transaction was open")


def test_a_thaw_that_never_comes_is_the_end_of_the_lease(guest):
    agent = guest.agent(replace(TIMES, lease_seconds=0.2))
    agent.freeze()
    assert guest.application.closed.wait(30)
    told = read_account(agent.thaw(failed=False))
    assert not told.held
    assert "the lease of 0.2 s ended" in told.reason


def test_what_vmware_tools_could_not_quiesce_was_not_held(guest):
    agent = guest.agent()
    agent.freeze()
    told = read_account(agent.thaw(failed=True))
    assert (told.held, told.reason) == (False, "VMware Tools could not quiesce the guest")
    assert guest.application.closed.is_set()


def test_a_hold_that_came_too_late_is_none(guest, monkeypatch):
    monkeypatch.setattr(VmwareTimes, "freeze_seconds", 0.3)
    guest.application.delay = 0.5
    agent = guest.agent()
    agent.freeze()
    assert guest.application.closed.is_set()
    told = read_account(agent.thaw(failed=False))
    assert (told.held, told.reason) == (False, "holding took more than 0.3 s")


def test_a_thaw_without_a_freeze_tells_nothing(guest):
    agent = guest.agent()
    assert agent.thaw(failed=False) is None
    assert (guest.published, agent.account()) == ([], None)


def test_holds_are_counted_and_a_second_freeze_ends_the_first(guest):
    agent = guest.agent()
    agent.freeze()
    agent.freeze()
    first = guest.published[1]
    second = read_account(agent.thaw(failed=False))
    assert (first.number, first.held) == (1, False)
    assert first.reason == "VMware Tools began another freeze"
    assert (second.number, second.held) == (2, True)


def test_an_agent_that_is_started_in_a_hold_leaves_the_file_systems_and_claims_nothing(guest):
    guest.agent().freeze()
    successor = guest.agent()
    assert successor.resume()
    told = read_account(successor.thaw(failed=False))
    assert (told.number, told.held, told.reason) == (1, False, RESTARTED)
    assert not guest.agent().resume()


def test_an_agent_that_stops_in_a_hold_lets_go_and_leaves_word_of_it(guest):
    agent = guest.agent()
    agent.freeze()
    agent.stop()
    assert guest.application.closed.is_set()
    assert guest.agent().resume()


def test_nothing_is_resumed_when_the_dead_mans_time_is_over(guest):
    guest.agent(replace(TIMES, dead_man_seconds=0.0)).freeze()
    assert not guest.agent().resume()


@pytest.mark.parametrize(("answer", "thawed"), [("", True), ("it was thawed", False)])
def test_the_dead_man_thaws_what_vmware_tools_left_frozen(
    guest, monkeypatch, tmp_path, answer, thawed
):
    asked = []
    monkeypatch.setattr(module.freezing, "thaw", lambda fd: asked.append(fd) or answer)
    guest.mounts = [Mount(str(tmp_path), "/dev/x", "ext4", "8:1", False)]
    agent = guest.agent(replace(TIMES, dead_man_seconds=0.5))
    agent.freeze()
    assert guest.dead_man.wait(30)
    told = guest.published[-1]
    assert len(asked) == 1
    assert (told.held, told.filesystems_thawed) == (False, thawed)
    assert told.reason == "VMware Tools never asked for the thaw"
    assert guest.application.closed.is_set()
    assert agent.thaw(failed=False) is None


def account(**changes):
    given = Account(boot_id(), 1, True, "", 1.0, 2.0, 3.0, 30.0, False, ())
    return replace(given, **changes)


def application(**changes):
    return replace(HeldApplication("postgresql", "15-main", True, "0/1", "7", 0.1, ""), **changes)


def test_an_account_is_always_small_enough_and_readable():
    many = tuple(
        application(name=f"{number}-main", witness="w" * 900, detail="d" * 5000)
        for number in range(6)
    )
    text = account(applications=many).text()
    told = read_account(text)
    assert len(text) <= MAX_BYTES
    assert told.held
    assert {each.witness for each in told.applications} == {None}
    assert [each.name for each in told.applications] == [each.name for each in many]


def test_an_account_that_cannot_name_its_applications_claims_nothing():
    text = account(applications=(application(),) * 100).text()
    told = read_account(text)
    assert len(text) <= MAX_BYTES
    assert (told.held, told.applications) == (False, ())
    assert "100 applications" in told.reason


def test_what_could_steer_a_terminal_is_not_told():
    told = read_account(
        account(reason="\x1b[2J", applications=(application(detail="a\nb"),)).text()
    )
    assert (told.reason, told.applications[0].detail) == ("?[2J", "a?b")
    [told] = read_account(
        account(applications=(application(witness="1\t2\n"),)).text()
    ).applications
    assert told.witness == "1\t2\n"
    [told] = read_account(account(applications=(application(witness="\x1b"),)).text()).applications
    assert told.witness is None
