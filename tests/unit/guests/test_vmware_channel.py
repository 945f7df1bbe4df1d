"""An agent's account of VMware Tools' holds over its own channel."""

import pytest

from agent_parts import served_agent
from atoll.guests.account import read_account
from atoll.guests.authority import Authority
from atoll_agent.keeper import Keeper
from atoll_agent.vmware.holding import VmwareHolding
from atoll_agent.vmware.ledger import Ledger
from atoll_agent.vmware.times import VmwareTimes


@pytest.fixture
def served(tmp_path):
    with served_agent(tmp_path, Authority.open(tmp_path / "agents")) as agent:
        yield agent


def test_an_agent_that_was_never_asked_by_vmware_tools_says_so(served):
    channel = served.channel()
    assert channel.vmware_account() is None
    channel.close()


def test_the_account_is_the_same_as_in_guestinfo(served, tmp_path):
    published = []
    keeper = Keeper(list, list)
    holding = VmwareHolding(keeper, list, VmwareTimes(), Ledger(tmp_path / "run"), published.append)
    served.server.vmware = holding
    channel = served.channel()
    holding.freeze()
    assert read_account(channel.vmware_account()).ended_at is None
    holding.thaw(failed=False)
    assert channel.vmware_account() == published[-1]
    assert read_account(published[-1]).held
    channel.close()
    keeper.stop()
