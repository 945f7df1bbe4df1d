"""The Debian package, installed by dpkg itself in a copy of this machine that is thrown away."""

import json
import socket
import subprocess

import pytest
from private_guest import await_that, run
from throwaway import throwaway_machine

from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.debian import agent_version, build_package, package_name
from atoll.guests.invitation import Invitations
from atoll.guests.reception import Reception
from atoll.guests.registry import AgentRegistry

UUID = "50123456-789a-bcde-f012-3456789abcde"
WANTS = "etc/systemd/system/multi-user.target.wants/atoll-agent.service"


@pytest.fixture
def machine():
    with throwaway_machine() as machine:
        run("mount", "-t", "proc", "proc", machine.root / "proc")
        try:
            yield machine
        finally:
            run("umount", machine.root / "proc")


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_it_is_the_same_each_time_and_what_dpkg_reads(tmp_path):
    assert build_package() == build_package()
    path = tmp_path / package_name()
    path.write_bytes(build_package())
    fields = run("dpkg-deb", "-f", path, "Package", "Version", "Architecture", "Depends")
    assert fields.splitlines() == [
        "Package: atoll-agent",
        f"Version: {agent_version()}",
        "Architecture: all",
        "Depends: python3 (>= 3.11)",
    ]
    listed = run("dpkg-deb", "-c", path)
    assert "root/root" in listed
    assert "./lib/systemd/system/atoll-agent.service" in listed
    run("dpkg-deb", "-x", path, tmp_path / "root")
    run("dpkg-deb", "-e", path, tmp_path / "control")
    for line in (tmp_path / "control/md5sums").read_text().splitlines():
        digest, name = line.split("  ")
        assert run("md5sum", tmp_path / "root" / name).startswith(digest)
    for script in ("postinst", "prerm", "postrm"):
        run("sh", "-n", tmp_path / "control" / script)


def test_systemd_takes_the_unit(tmp_path):
    path = tmp_path / package_name()
    path.write_bytes(build_package())
    run("dpkg-deb", "-x", path, tmp_path / "root")
    unit = tmp_path / "root/lib/systemd/system/atoll-agent.service"
    text = unit.read_text()
    # It looks for the program, which is not installed here.
    unit.write_text(text.replace("/usr/lib/atoll/", f"{tmp_path}/root/usr/lib/atoll/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "atoll" in line]
    assert (done.returncode, ours) == (0, [])
    assert "ConditionPathExists=/etc/atoll/agent.json" in text


@pytest.mark.needs_root
def test_installed_enrolled_serving_removed_and_purged(machine, free_port, tmp_path):
    machine.run("dpkg", "-i", f"/{package_name()}")
    assert (machine.root / WANTS).is_symlink()
    assert (machine.root / "etc/atoll").stat().st_mode & 0o777 == 0o700
    assert list((machine.root / "etc/atoll").iterdir()) == []
    assert machine.run("atoll-agent", "--version").stdout == f"atoll-agent {agent_version()}\n"

    before = machine.run("atoll-agent", "serve", check=False)
    assert before.returncode == 1
    assert before.stderr == (
        "atoll-agent: Cannot read /etc/atoll/agent.json: No such file or directory; "
        "enrol this guest.\n"
    )

    # Nothing of this machine may ever be frozen.
    mine = {"freeze_only": [], "discover": False, "address": "127.0.0.1"}
    (machine.root / "etc/atoll/agent.json").write_text(json.dumps(mine))
    authority = Authority.open(tmp_path / "agents")
    with Reception(authority, ("127.0.0.1", 0), lambda _: None) as reception:
        _, token = Invitations(authority.directory).create(
            vm_name="db1",
            instance_uuid=UUID,
            bios_uuid="",
            address="127.0.0.1",
            port=free_port,
            listen_port=free_port,
            valid_seconds=600,
            pin=authority.enrolment_identity()[1],
            endpoint=("127.0.0.1", reception.port),
        )
        said = machine.run("atoll-agent", "enrol", "--no-start", said=f"{token}\n").stdout
    assert said.startswith("This guest is enrolled as db1.")
    log = tmp_path / "agent.log"
    serving = machine.start("/usr/bin/atoll-agent", "serve", log=log)
    try:
        await_that(lambda: "listens on" in log.read_text(), "the agent listens")
        registry = AgentRegistry(authority.directory)
        channel = AgentChannel(registry.agents()[0], authority.credentials, registry)
        assert channel.status().name == "db1"
        channel.freeze("r1", 60, 30)
        assert channel.thaw("r1").held
    finally:
        serving.terminate()
        assert serving.wait(30) == 0

    machine.run("dpkg", "-i", f"/{package_name()}")
    machine.run("dpkg", "-r", "atoll-agent")
    assert not (machine.root / "usr/lib/atoll").exists()
    assert (machine.root / "etc/atoll/agent.pem").exists()
    machine.run("dpkg", "-i", f"/{package_name()}")
    assert (machine.root / WANTS).is_symlink()
    # A director on the same machine keeps its own settings there.
    (machine.root / "etc/atoll/atoll.toml").write_text("")
    machine.run("dpkg", "-P", "atoll-agent")
    assert [path.name for path in (machine.root / "etc/atoll").iterdir()] == ["atoll.toml"]
    assert not (machine.root / WANTS).is_symlink()
    assert list((machine.root / "etc/systemd/system").glob("*atoll*")) == []


@pytest.mark.needs_root
def test_an_admins_disable_outlives_an_upgrade(machine):
    machine.run("dpkg", "-i", f"/{package_name()}")
    machine.run("systemctl", "disable", "atoll-agent.service")
    machine.run("dpkg", "-i", f"/{package_name()}")
    assert not (machine.root / WANTS).is_symlink()
