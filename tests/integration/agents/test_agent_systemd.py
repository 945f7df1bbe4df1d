"""The unit under a real systemd: with all its restrictions the agent holds, renews and lets go."""

import json
import socket
import threading

import pytest
from private_guest import await_that, mounted, run
from throwaway import throwaway_machine

from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.debian import package_name
from atoll.guests.invitation import Invitations
from atoll.guests.reception import Reception
from atoll.guests.registry import AgentRegistry
from atoll.guests.renewal import renew_agent
from atoll.model.errors import AgentUnavailableError

pytestmark = pytest.mark.needs_root


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_whole_life_of_an_installed_agent(tmp_path):
    image, disk = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-F", image)
    with (
        mounted(image, disk),
        throwaway_machine() as machine,
        machine.booted((disk, "/data")),
    ):
        machine.run("dpkg", "-i", f"/{package_name()}")
        state = machine.run("systemctl", "is-active", "atoll-agent", check=False).stdout
        enabled = machine.run("systemctl", "is-enabled", "atoll-agent").stdout
        assert (state, enabled) == ("inactive\n", "enabled\n"), "installed, and waiting"

        port, authority = free_port(), Authority.open(tmp_path / "agents")
        # Nothing of this machine but the test's own disk may ever be frozen.
        mine = {"freeze_only": ["/data"], "discover": False, "address": "127.0.0.1"}
        (machine.root / "etc/atoll/agent.json").write_text(json.dumps(mine))
        with Reception(authority, ("127.0.0.1", 0), lambda _: None) as reception:
            _, token = Invitations(authority.directory).create(
                vm_name="db1",
                instance_uuid="u-1",
                bios_uuid="",
                address="127.0.0.1",
                port=port,
                listen_port=port,
                valid_seconds=600,
                pin=authority.enrolment_identity()[1],
                endpoint=("127.0.0.1", reception.port),
            )
            machine.run("atoll-agent", "enrol", said=f"{token}\n")
        registry = AgentRegistry(authority.directory)
        channel = AgentChannel(registry.agents()[0], authority.credentials, registry)

        def idle():
            try:
                return channel.status().state == "idle"
            except AgentUnavailableError:
                return False

        await_that(idle, "enrolment started the service")
        assert [found.mount for found in channel.look().filesystems] == ["/data"]

        def frozen():
            done = threading.Event()

            def write():
                (disk / "probe").write_bytes(b"x")
                done.set()

            threading.Thread(target=write, daemon=True).start()
            return not done.wait(0.7)

        channel.prepare("r1")
        channel.freeze("r1", 60, 30)
        assert frozen()
        assert channel.thaw("r1").held
        assert renew_agent(authority, registry.agents()[0]).pending == ()

        channel.freeze("r2", 60, 30)
        machine.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "atoll-agent")
        await_that(idle, "systemd starts a killed agent again")
        assert not frozen(), "its watchdog outlived it and thawed"

        channel.freeze("r3", 60, 30)
        machine.run("dpkg", "-P", "atoll-agent")
        assert not frozen(), "removal thaws"
        assert not (machine.root / "etc/atoll").exists()
        with pytest.raises(AgentUnavailableError):
            channel.status()
