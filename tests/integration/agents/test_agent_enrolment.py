"""From `atoll agent invite` to an agent that answers, with the programs as they ship."""

import hashlib
import json
import os
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from atoll.cli.main import app
from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.debian import build_package, package_name
from atoll.guests.invitation import Invitations
from atoll.guests.package import build_agent
from atoll.guests.reception import Reception
from atoll.guests.registry import AgentRegistry
from atoll.model.errors import AtollError
from vsphere_site import DB1_UUID, PASSWORD, USER, simulated_site

ATOLL = str(Path(sys.executable).with_name("atoll"))
GUESTS_PYTHON = "/usr/bin/python3"

# Renews one agent again and again until it is killed or the agent is.
RENEW = """
import sys
from pathlib import Path
from atoll.guests.authority import Authority
from atoll.guests.registry import AgentRegistry
from atoll.guests.renewal import renew_agent
authority = Authority.open(Path(sys.argv[1]))
while True:
    renew_agent(authority, AgentRegistry(authority.directory).agents()[0])
    print("renewed", flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def vcenter(tmp_path_factory):
    with simulated_site(tmp_path_factory.mktemp("site")) as site:
        yield site.settings()


@pytest.fixture
def director(vcenter, tmp_path):
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "atoll.toml").write_text(f"""
[vcenter]
host = "{vcenter.host}"
port = {vcenter.port}
user = "{USER}"
password_file = "password"
ca_file = "{vcenter.ca_file}"

[[storage]]
name = "none"
driver = "embedded"
root = "/nonexistent"

[agents]
directory = "agents"
certificate_days = 30

[director]
state_directory = "state"
""")
    return tmp_path


@pytest.fixture
def guest(tmp_path):
    """A guest's directory with the agent in it, which would hold nothing."""
    (tmp_path / "guest").mkdir()
    (tmp_path / "agent.pyz").write_bytes(build_agent())
    mine = {"freeze_only": [], "discover": False, "address": "127.0.0.1"}
    (tmp_path / "guest/agent.json").write_text(json.dumps(mine))
    return tmp_path / "guest"


class Running:
    """A command whose lines are read as they come; nothing of it is left afterwards."""

    def __init__(self, *argv, cwd, said=None):
        self.lines = []
        self._rest = b""
        self.process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            stdin=subprocess.PIPE if said else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if key != "ATOLL_CONFIG"},
        )
        if said:
            self.process.stdin.write(said.encode())
            self.process.stdin.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def until(self, pattern):
        """Read until a line matches; returns the match. The limit only ends a test that hangs."""
        limit = time.monotonic() + 120
        while True:
            for line in self.lines:
                if found := re.search(pattern, line):
                    return found
            ready, _, _ = select.select([self.process.stdout], [], [], limit - time.monotonic())
            assert ready, f"never said {pattern}: {self.lines}"
            assert self._read(), f"ended without {pattern}: {self.lines}"

    def end(self):
        """Read to the end; returns the exit status."""
        while self._read():
            pass
        return self.process.wait(120)

    def _read(self):
        part = os.read(self.process.stdout.fileno(), 65536)
        *whole, self._rest = (self._rest + part).split(b"\n")
        self.lines += [f"{line.decode()}\n" for line in whole]
        return part


def atoll(director, *argv):
    """The command in this process, which is quicker: status, standard output, and what it raised."""
    done = CliRunner().invoke(app, ["--config", str(director / "atoll.toml"), *argv])
    if isinstance(done.exception, AtollError):
        return done.exception.exit_status, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, ""


def agent(guest, *argv, said=None):
    config = guest / "agent.json"
    program = guest.parent / "agent.pyz"
    return Running(GUESTS_PYTHON, program, *argv, "--config", config, cwd=guest, said=said)


def listening(process):
    """The TCP ports this very process listens on."""
    inodes = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes
    ]


def test_a_guest_is_invited_enrols_and_answers(director, guest):
    port, reception = free_port(), free_port()
    invite = ("agent", "invite", "db1", "--wait", "--valid", "10m", "--address", "127.0.0.1")
    where = ("--port", port, "--listen", f"127.0.0.1:{reception}", "--any-guest")
    with Running(ATOLL, *invite, *where, cwd=director) as inviting:
        token = inviting.until("^atoll1-.*$")[0].strip()
        inviting.until("Waiting for db1")
        # The token is asked for, so it is in no process's arguments.
        with agent(guest, "enrol", "--no-start", said=f"{token}\n") as enrolling:
            assert enrolling.end() == 0, enrolling.lines
            assert "This guest is enrolled as db1.\n" in enrolling.lines
        with agent(guest, "serve") as serving:
            serving.until("listens on")
            assert listening(serving.process) == [port]
            inviting.until("The agent of db1 answers; its version is")
            assert inviting.end() == 0

            status, said, _ = atoll(director, "agent", "list", "--json")
            [row] = json.loads(said)
            assert (status, row["state"], row["instance_uuid"]) == (0, "idle", DB1_UUID)
            status, said, _ = atoll(director, "agent", "list")
            assert re.search(r"29 days left", said)

            status, said, _ = atoll(director, "agent", "check", "--all", "--json")
            [row] = json.loads(said)
            assert (status, row["remarks"]) == (4, ["it finds no file system to freeze"])
            status, said, _ = atoll(director, "agent", "check", "db1")
            assert "! it finds no file system to freeze" in said

            assert atoll(director, "agent", "renew")[1] == "No certificate is due.\n"
            before = (guest / "agent.pem").read_bytes()
            status, said, _ = atoll(director, "agent", "renew", "db1", "--json")
            assert (status, json.loads(said)[0]["problem"]) == (0, "")
            assert (guest / "agent.pem").read_bytes() != before

            status, said, _ = atoll(director, "agent", "renew-authority")
            assert status == 0
            assert "the old one is trusted no more" in said
            assert atoll(director, "agent", "list", "--json")[0] == 0
        status, said, _ = atoll(director, "agent", "renew-authority")
        assert status == 4
        assert "some agents are still to come along" in said
        assert atoll(director, "agent", "forget", "db1")[0] == 0
        assert atoll(director, "agent", "renew")[0] == 0
        assert len(Authority.open(director / "agents").trusted_fingerprints) == 1


def test_without_enrolment_nothing_listens(guest):
    (guest / "agent.json").unlink()
    with agent(guest, "serve") as serving:
        assert serving.end() == 1
        [line] = serving.lines
        assert line.startswith("atoll-agent: Cannot read ")
        assert line.endswith("enrol this guest.\n")


def test_what_is_wrong_on_the_command_line_is_said(director):
    for argv, said in (
        (("invite", "nobody"), "knows 0 VMs called nobody"),
        (("invite", "db1", "--valid", "soon"), "soon is not a time"),
        (("invite", "db1", "--director", "a:b:c"), "not HOST:PORT"),
        (("check",), "Name VMs, or say --all"),
        (("check", "db1"), "0 agents are enrolled for db1"),
        (("renew", "db1", "--all"), "not both"),
        (("withdraw", "db1"), "no token for db1"),
    ):
        status, _, errors = atoll(director, "agent", *argv)
        assert status != 0
        assert said in errors


def test_the_package_is_written_where_it_is_wanted(director):
    status, said, _ = atoll(
        director, "agent", "package", "--deb", str(director), "--pyz", str(director / "a.pyz")
    )
    assert status == 0
    assert f"apt install ./{package_name()}" in said
    assert (director / package_name()).read_bytes() == build_package()
    assert (director / "a.pyz").read_bytes() == build_agent()
    missing = str(director / "no" / "such.deb")
    status, _, said = atoll(director, "agent", "package", "--deb", missing)
    assert (status, "Cannot write" in said) == (3, True)


def test_a_token_that_was_withdrawn_is_void(director, guest):
    status, said, _ = atoll(director, "agent", "invite", "db1", "--address", "127.0.0.1")
    token = re.search("^atoll1-.*$", said, re.M)[0]
    assert status == 0
    assert atoll(director, "agent", "withdraw", "db1")[0] == 0
    authority = Authority.open(director / "agents")
    with Reception(authority, ("127.0.0.1", 0), lambda _: None) as reception:
        elsewhere = ("--director", f"127.0.0.1:{reception.port}")
        with agent(guest, "enrol", "--no-start", *elsewhere, said=f"{token}\n") as enrolling:
            assert enrolling.end() == 1
            assert "not valid" in enrolling.lines[-1]


def test_a_used_token_is_used_after_kill_9(director, guest, tmp_path):
    """The endpoint is killed again and again while a guest enrols; a thief comes after each."""
    authority = Authority.open(director / "agents")
    reception = free_port()
    serve = (ATOLL, "agent", "serve-enrolment", "--listen", f"127.0.0.1:{reception}")
    repeats = int(os.environ.get("ATOLL_ENROLMENT_KILLS", "3"))
    for number in range(repeats):
        _, token = Invitations(authority.directory).create(
            vm_name="db1",
            instance_uuid=DB1_UUID,
            bios_uuid="",
            address="127.0.0.1",
            port=8443,
            listen_port=8443,
            valid_seconds=600,
            pin=authority.enrolment_identity()[1],
            endpoint=("127.0.0.1", reception),
        )
        with Running(*serve, cwd=director) as serving:
            serving.until("Guests can enrol")
            with agent(guest, "enrol", "--no-start", said=f"{token}\n") as enrolling:
                # Spread over what an enrolment takes, from before the connection to after it.
                time.sleep(0.05 + 0.25 * number / max(1, repeats - 1))
                serving.process.send_signal(signal.SIGKILL)
                serving.process.wait()
                enrolled = enrolling.end() == 0
        # Whoever serves next knows it from the disk.
        with Reception(authority, ("127.0.0.1", reception), lambda _: None):
            if not enrolled:
                with agent(guest, "enrol", "--no-start", said=f"{token}\n") as enrolling:
                    assert enrolling.end() == 0, enrolling.lines
            thief = tmp_path / f"thief{number}"
            thief.mkdir()
            with agent(thief, "enrol", "--no-start", said=f"{token}\n") as stealing:
                assert stealing.end() == 1
                assert "used already" in stealing.lines[-1]
        pem = (guest / "agent.pem").read_text()
        der = ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----BEGIN PRIVATE")])
        [entry] = AgentRegistry(authority.directory).agents()
        assert entry.fingerprint == hashlib.sha256(der).hexdigest()


@pytest.mark.soak
def test_a_used_token_is_used_after_very_many_kills(director, guest, tmp_path, monkeypatch):
    monkeypatch.setenv("ATOLL_ENROLMENT_KILLS", "100")
    test_a_used_token_is_used_after_kill_9(director, guest, tmp_path)


def test_a_kill_9_of_either_side_during_a_renewal_locks_nobody_out(director, guest):
    """As a whole process this time; the unit tests stop at each single step."""
    authority = Authority.open(director / "agents")
    port = free_port()
    with Reception(authority, ("127.0.0.1", 0), lambda _: None) as reception:
        _, token = Invitations(authority.directory).create(
            vm_name="db1",
            instance_uuid=DB1_UUID,
            bios_uuid="",
            address="127.0.0.1",
            port=port,
            listen_port=port,
            valid_seconds=600,
            pin=authority.enrolment_identity()[1],
            endpoint=("127.0.0.1", reception.port),
        )
        with agent(guest, "enrol", "--no-start", said=f"{token}\n") as enrolling:
            assert enrolling.end() == 0
    registry = AgentRegistry(authority.directory)
    [entry] = registry.agents()
    repeats = int(os.environ.get("ATOLL_RENEWAL_KILLS", "6"))
    chance = random.Random(7)
    for number in range(repeats):
        with agent(guest, "serve") as serving:
            serving.until("listens on")
            with Running(sys.executable, "-c", RENEW, authority.directory, cwd="/") as renewing:
                renewing.until("renewed")
                time.sleep(chance.random() * 0.2)
                (serving if number % 2 else renewing).process.send_signal(signal.SIGKILL)
        with agent(guest, "serve") as serving:
            serving.until("listens on")
            channel = AgentChannel(entry, authority.credentials, registry)
            assert channel.status().name == "db1"
            assert not list(guest.glob(".*"))
    renewed = registry.agents()[0]
    assert renewed.fingerprint != entry.fingerprint


@pytest.mark.soak
def test_very_many_kills_during_renewals(director, guest, monkeypatch):
    monkeypatch.setenv("ATOLL_RENEWAL_KILLS", "300")
    test_a_kill_9_of_either_side_during_a_renewal_locks_nobody_out(director, guest)
