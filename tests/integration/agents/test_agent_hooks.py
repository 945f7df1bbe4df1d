"""Hooks: programs of the admin's, called in order and let go of whatever dies."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from module_guest import agent, alive, disk
from private_guest import await_that

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.errors import ConfigError
from atoll_agent.modules import hooks

pytestmark = pytest.mark.needs_root

SCRIPT = """#!/bin/sh
echo "$1" >> {log}
case "$1" in
  freeze) {freeze} ;;
  thaw|abort) {release} ;;
  testify) echo "witness: 17 orders" ;;
esac
"""


@pytest.fixture
def base():
    # Not below /tmp, where everybody may write: hooks from there are refused.
    found = Path(tempfile.mkdtemp(prefix="atoll-hooks-", dir="/var/lib"))
    yield found
    shutil.rmtree(found)


class Script:
    def __init__(self, base, freeze="true", release="true"):
        self.path = base / "shop"
        self.log = base / "calls"
        self.log.write_text("")
        self.path.write_text(SCRIPT.format(log=self.log, freeze=freeze, release=release))
        self.path.chmod(0o755)

    @property
    def calls(self):
        return self.log.read_text().split()

    def entry(self, **more):
        name = f"shop-{os.getpid()}-{self.path.parent.name}"
        return {"kind": "hooks", "name": name, "command": str(self.path), **more}


def test_a_hook_is_called_in_order_and_says_where_it_stands(base):
    script = Script(base, freeze="echo position: 4711; echo witness: 17 orders; echo queue empty")
    with agent([script.entry()], []) as holding:
        assert holding.order("remark") == [f"held by {script.path}"]
        holding.prepare("a")
        assert script.calls == ["prepare"]
        [state] = holding.freeze("a")["applications"]
        assert (state["held"], state["position"]) == (True, "4711")
        assert (state["witness"], state["detail"]) == ("17 orders", "queue empty")
        thawed = holding.thaw("a")
        assert (thawed["held"], thawed["reason"]) == (True, "")
    assert script.calls == ["prepare", "freeze", "thaw"]


def test_a_hook_does_not_inherit_the_protection_from_the_oom_killer(base):
    script = Script(base, freeze="sleep 0.2; echo position: $(cat /proc/self/oom_score_adj)")
    with agent([script.entry()], []) as holding:
        [state] = holding.freeze("a")["applications"]
        assert (state["held"], state["position"]) == (True, "0")
        holding.thaw("a")


def test_a_hook_that_fails_is_aborted_and_does_not_hold(base):
    script = Script(base, freeze="echo no room >&2; exit 3")
    with agent([script.entry()], []) as holding:
        [state] = holding.freeze("a")["applications"]
        assert not state["held"]
        assert "freeze ended with status 3: no room" in state["detail"]
        await_that(lambda: script.calls == ["freeze", "abort"], "it is aborted")
        holding.thaw("a")


def test_a_hook_that_takes_too_long_is_killed_and_aborted(base):
    script = Script(base, freeze="sleep 600")
    with agent([script.entry()], []) as holding:
        holding.prepare("a")
        [state] = holding.freeze("a", budget=5)["applications"]
        assert not state["held"]
        assert "did not end in time" in state["detail"]
        await_that(lambda: script.calls == ["prepare", "freeze", "abort"], "it is aborted")
        holding.thaw("a")


def test_a_killed_agent_has_its_hook_thawed(base):
    script = Script(base)
    with agent([script.entry()], []) as holding:
        assert holding.freeze("a")["applications"][0]["held"]
        left = holding.dead_men()
        holding.kill()
        await_that(lambda: not alive(left), "its dead-man's process leaves")
    assert script.calls == ["freeze", "thaw"]


def test_a_lease_that_ends_has_the_hook_thawed_though_the_agent_is_stopped(base):
    script = Script(base)
    with agent([script.entry()], []) as holding:
        holding.freeze("a", lease=1)
        os.kill(holding.process.pid, signal.SIGSTOP)
        await_that(lambda: script.calls == ["freeze", "thaw"], "it is thawed")
        os.kill(holding.process.pid, signal.SIGCONT)
        assert "lease of 1 s ended" in holding.thaw("a")["reason"]
    assert script.calls == ["freeze", "thaw"]


def test_a_thaw_that_fails_is_repeated_until_it_succeeds(base):
    script = Script(base, release=f"test -e {base}/ready")
    with agent([script.entry()], []) as holding:
        holding.freeze("a")
        holding.kill()
        await_that(lambda: script.calls.count("thaw") > 2, "it is repeated")
        (base / "ready").touch()
        await_that(lambda: not list(hooks_records(script)), "it is thawed at last")


def hooks_records(script):
    return Path("/run/atoll-agent").glob(f"hooks-{script.entry()['name']}.held")


def test_what_everybody_killed_left_frozen_the_next_agent_aborts(base):
    script = Script(base)
    with agent([script.entry()], []) as holding:
        holding.freeze("a")
        os.kill(holding.process.pid, signal.SIGSTOP)
        for pid in holding.dead_men():
            os.kill(pid, signal.SIGKILL)
        holding.kill()
        assert script.calls == ["freeze"]
        holding.start()
        assert holding.order("recover") == [None]
        assert holding.order("recover") == [None]
    assert script.calls == ["freeze", "abort"]


def test_a_hook_is_never_called_while_file_systems_are_frozen(base, tmp_path):
    """Its log lies on the frozen disk: a call in between would wait for the thaw or be missing."""
    with disk(tmp_path / "disk.img", tmp_path / "disk", megabytes=64):
        script = Script(base)
        script.log = tmp_path / "disk" / "calls"
        script.path.write_text(SCRIPT.format(log=script.log, freeze="true", release="true"))
        script.path.chmod(0o755)
        with agent([script.entry()], [tmp_path / "disk"]) as holding:
            assert holding.freeze("a")["applications"][0]["held"]
            assert holding.thaw("a")["held"]
        assert script.calls == ["freeze", "thaw"]


def test_programs_that_others_could_have_written_are_refused(base, tmp_path):
    script = Script(base)
    link = base / "link"
    link.symlink_to(script.path)
    elsewhere = tmp_path / "shop"
    shutil.copy(script.path, elsewhere)
    assert hooks.why_not_trusted(script.path) == ""
    assert "symbolic link" in hooks.why_not_trusted(link)
    assert "writable by root alone" in hooks.why_not_trusted(elsewhere)
    assert "cannot be looked at" in hooks.why_not_trusted(base / "none")
    assert "not an executable file" in hooks.why_not_trusted(base)
    for mode in (0o775, 0o757):
        script.path.chmod(mode)
        assert "writable by root alone" in hooks.why_not_trusted(script.path)
        with agent([script.entry()], []) as holding:
            [state] = holding.freeze("a")["applications"]
            assert not state["held"]
            assert "writable by root alone" in state["detail"]
            holding.thaw("a")
    script.path.chmod(0o755)
    os.chown(script.path, 65534, 0)
    assert "belong to root" in hooks.why_not_trusted(script.path)
    assert script.calls == []


def test_a_directory_of_hooks_and_their_testimony(base):
    Script(base)
    (base / "shop.bak").touch(0o755)
    (base / "notes").touch(0o644)
    configured = (ApplicationConfig("hooks", "shop", {"seconds": 5}),)
    [found] = hooks.discover(configured, True, base)
    testimony = found.testify(Deadline(60))
    assert (found.name, testimony.answering, testimony.witness) == ("shop", True, "17 orders")
    assert hooks.discover((), False, base) == []
    with pytest.raises(ConfigError, match="absolute"):
        hooks.discover((ApplicationConfig("hooks", "x", {"command": "bin/x"}),), True, base)
