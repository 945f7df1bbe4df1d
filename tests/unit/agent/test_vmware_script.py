"""The script that VMware Tools runs: whom it asks, and that it never stands in the way."""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from atoll.guests.account import read_account
from atoll.guests.package import build_agent
from atoll_agent.config import load_unenrolled
from atoll_agent.errors import ConfigError
from atoll_agent.vmware.guestinfo import KEY
from atoll_agent.vmware.install import install_script, remove_script
from atoll_agent.vmware.ledger import Ledger
from atoll_agent.vmware.local import HOLDER, LocalServer, ask
from atoll_agent.vmware.script import make_holding, run_script, serve_tools
from atoll_agent.vmware.times import VmwareTimes


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({"discover": False}))
    return path


@pytest.fixture
def published(tmp_path, monkeypatch):
    """What a `vmware-rpctool` on the PATH was told to set, oldest first."""
    tool, told = tmp_path / "bin" / "vmware-rpctool", tmp_path / "told"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >>{told}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    def read():
        lines = told.read_text().splitlines() if told.exists() else []
        assert all(line.startswith(f"info-set {KEY} ") for line in lines)
        return [read_account(line.removeprefix(f"info-set {KEY} ")) for line in lines]

    return read


def holder_process(directory):
    """A pidfd of the process that answers at the holder's socket."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(directory / HOLDER))
        peer = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return os.pidfd_open(struct.unpack("3i", peer)[0])


def wait_for_end(process):
    assert select.select([process], [], [], 60)[0]
    os.close(process)


def test_without_an_agent_a_process_of_its_own_holds_until_the_thaw(directory, config, published):
    assert run_script("freeze", config, directory) == 0
    process = holder_process(directory)
    assert Ledger(directory).under_way() is not None

    assert run_script("thaw", config, directory) == 0

    wait_for_end(process)
    begun, ended = published()
    assert (begun.number, begun.held, begun.ended_at) == (1, False, None)
    assert (ended.number, ended.held, ended.applications) == (1, True, ())
    assert not (directory / HOLDER).exists()


def test_one_that_was_never_told_to_thaw_is_asked_again(directory, config, published):
    run_script("freeze", config, directory)
    first = holder_process(directory)
    run_script("freeze", config, directory)
    run_script("thaw", config, directory)
    wait_for_end(first)
    assert [(told.number, told.held) for told in published()] == [
        (1, False),
        (1, False),
        (2, False),
        (2, True),
    ]


def test_a_holder_that_is_killed_keeps_nobody_from_holding_again(directory, config, published):
    run_script("freeze", config, directory)
    process = holder_process(directory)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    wait_for_end(process)
    assert run_script("thaw", config, directory) == 0

    run_script("freeze", config, directory)
    process = holder_process(directory)
    run_script("thaw", config, directory)
    wait_for_end(process)
    told = published()[-1]
    assert (told.number, told.held) == (2, True)


def test_an_agent_that_serves_is_asked(directory, config, published):
    holding = make_holding(load_unenrolled(config), directory)
    server = serve_tools(holding, directory)
    try:
        run_script("freeze", config, directory)
        assert holding.under_way
        assert not (directory / HOLDER).exists()
        run_script("thaw", config, directory)
        assert not holding.under_way
    finally:
        server.stop()
    assert [told.held for told in published()] == [False, True]
    assert read_account(holding.account()) == published()[-1]


def test_a_guest_that_was_never_enrolled_has_every_default(tmp_path):
    config = load_unenrolled(tmp_path / "nothing.json")
    assert (config.applications, config.discover) == ((), True)
    assert config.vmware == VmwareTimes(30.0, 10.0, 30.0, 300.0)


@pytest.mark.parametrize(
    "given",
    [[], {"lease": 3}, {"lease_seconds": 0}, {"lease_seconds": 61}, {"dead_man_seconds": "300"},
     {"budget_seconds": True}, {"prepare_seconds": None}],
)  # fmt: skip
def test_times_that_make_no_sense_are_refused(tmp_path, given):
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({"vmware": given}))
    with pytest.raises(ConfigError, match="vmware"):
        load_unenrolled(path)


def test_a_failed_freeze_of_vmware_tools_is_told(directory, config, published):
    run_script("freeze", config, directory)
    process = holder_process(directory)
    run_script("freezeFail", config, directory)
    wait_for_end(process)
    told = published()[-1]
    assert (told.held, told.reason) == (False, "VMware Tools could not quiesce the guest")


def test_a_wrong_configuration_stops_no_snapshot_and_is_told(directory, config, published, capsys):
    config.write_text(json.dumps({"vmware": {"lease_seconds": 9999}}))
    assert run_script("freeze", config, directory) == 0
    assert run_script("thaw", config, directory) == 0
    [told] = published()
    assert not told.held
    assert "lease_seconds must be a number from 1 to 60" in told.reason
    assert "lease_seconds" in capsys.readouterr().err


def test_what_is_held_for_a_script_that_gave_up_is_let_go(
    directory, config, published, monkeypatch, capsys
):
    asked, release, let_go = [], threading.Event(), threading.Event()

    def hold(operation):
        asked.append(operation)
        release.wait(60)
        if operation == "freezeFail":
            let_go.set()

    monkeypatch.setattr("atoll_agent.vmware.times.VmwareTimes.script_seconds", 0.2)
    server = LocalServer(directory, "agent.sock", hold)
    server.start()
    try:
        assert run_script("freeze", config, directory) == 0
        assert asked == ["freeze"]
        release.set()
        assert let_go.wait(60)
    finally:
        release.set()
        server.stop()
    assert asked == ["freeze", "freezeFail"]
    assert "timed out" in capsys.readouterr().err


def test_no_guestinfo_is_no_failure(directory, config, monkeypatch, capsys):
    monkeypatch.setattr("atoll_agent.vmware.guestinfo._PROGRAM", "no-such-rpctool")
    server = serve_tools(make_holding(load_unenrolled(config), directory), directory)
    try:
        assert run_script("freeze", config, directory) == 0
        assert run_script("thaw", config, directory) == 0
    finally:
        server.stop()
    assert read_account(Ledger(directory).account()).held
    assert "no-such-rpctool is not installed" in capsys.readouterr().err


def test_what_vmware_tools_may_call_besides_is_let_pass(directory, config):
    assert run_script("something-new", config, directory) == 0
    assert not directory.exists()


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"op": "explode"}\n', b"[" * 300 + b"\n", b""])
def test_the_socket_answers_nothing_else(directory, line):
    server = LocalServer(directory, HOLDER, lambda operation: operation)
    server.start()
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(30)
            channel.connect(str(directory / HOLDER))
            channel.sendall(line)
            channel.shutdown(socket.SHUT_WR)
            assert channel.recv(100) == b""
        assert ask(directory, HOLDER, "thaw", 30) == "thaw"
        assert (directory / HOLDER).stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop()


def test_the_script_is_installed_and_removed(tmp_path):
    agent = Path("/usr/lib/atoll/atoll-agent.pyz")
    path = install_script(tmp_path, agent)
    assert path == tmp_path / "etc/vmware-tools/backupScripts.d/50-atoll"
    assert path.stat().st_mode & 0o777 == 0o755
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0
    assert install_script(tmp_path, agent).read_text() == path.read_text()
    assert [each.name for each in path.parent.iterdir()] == ["50-atoll"]
    remove_script(tmp_path)
    remove_script(tmp_path)
    assert not path.exists()


def test_a_path_that_would_be_a_command_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be the agent's path"):
        install_script(tmp_path, Path("/tmp/$(reboot).pyz"))


def test_the_agent_as_it_is_shipped_installs_the_script_and_passes_any_call(tmp_path):
    agent = tmp_path / "atoll-agent.pyz"
    agent.write_bytes(build_agent())
    done = subprocess.run(
        ["/usr/bin/python3", "-B", agent, "install-vmware-script", "--root", tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    script = tmp_path / "etc/vmware-tools/backupScripts.d/50-atoll"
    assert done.stdout == f"VMware Tools will run {script}.\n"
    assert str(agent) in script.read_text()
    assert subprocess.run([script, "something-new"], check=False).returncode == 0
    agent.unlink()
    assert subprocess.run([script, "freeze"], check=False).returncode == 0


def test_the_agent_as_it_is_shipped_holds_by_itself(tmp_path, directory, config, published):
    agent = tmp_path / "atoll-agent.pyz"
    agent.write_bytes(build_agent())
    for operation in ("freeze", "thaw"):
        words = ["vmware", operation, "--config", config, "--directory", directory]
        subprocess.run(["/usr/bin/python3", "-B", agent, *words], check=True)
        if operation == "freeze":
            process = holder_process(directory)
    wait_for_end(process)
    assert [(told.number, told.held) for told in published()] == [(1, False), (1, True)]
