"""What an idle agent costs its guest: memory, and no work at all."""

import dataclasses
import json
import re
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from private_guest import await_that

from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.enrolment import enrol
from atoll.guests.registry import AgentRegistry

MIB = 1 << 20
CONNECTIONS = 4
QUIET_SECONDS = 5


@pytest.fixture
def idle(tmp_path):
    """The agent as it ships under the guest's own Python, with discovery on and nothing to freeze."""
    authority = Authority.open(tmp_path / "agents")
    tar = enrol(authority, "db1", "u-1", tmp_path / "db1.tar", address="127.0.0.1")
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "root", filter="fully_trusted")
    config = tmp_path / "root/etc/atoll/agent.json"
    given = json.loads(config.read_text())
    given |= {"address": "127.0.0.1", "port": 0, "freeze_only": []}
    config.write_text(json.dumps(given))
    log = tmp_path / "log"
    program = tmp_path / "root/usr/lib/atoll/atoll-agent.pyz"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["/usr/bin/python3", "-B", program, "serve", "--config", config],
            stdout=stream,
            stderr=stream,
            cwd="/",
        )
    try:
        await_that(lambda: "listens on" in log.read_text(), "the agent listens")
        port = int(re.search(r"listens on (\d+)", log.read_text())[1])
        [entry] = AgentRegistry(authority.directory).agents()

        def channel():
            return AgentChannel(dataclasses.replace(entry, port=port), authority.credentials)

        yield process.pid, channel
    finally:
        process.terminate()
        assert process.wait(30) == 0


def memory(pid):
    """Resident and proportional bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return tuple(
        int(re.search(rf"^{name}: +(\d+) kB", rollup, re.M)[1]) << 10 for name in ("Rss", "Pss")
    )


def switches(pid):
    """How often any of its threads went to sleep or was sent away, by thread."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        counts = re.findall(r"ctxt_switches:\s+(\d+)", status.read_text())
        found[status.parent.name] = sum(map(int, counts))
    return found


def test_an_idle_agent_is_small_and_does_nothing(idle):
    pid, channel = idle
    channels = [channel() for _ in range(CONNECTIONS)]
    for number, each in enumerate(channels):
        # Each keeps its connection, as while runs are being prepared.
        each.prepare(f"r{number}")
    with_connections = memory(pid)
    for number, each in enumerate(channels):
        each.thaw(f"r{number}")
    # What was armed is let go a moment after the answer.
    await_that(lambda: len(switches(pid)) <= 3, "its threads end")
    alone = memory(pid)
    assert with_connections[0] < 40 * MIB
    assert alone[0] < 30 * MIB, f"{alone[0] / MIB:.1f} MiB"
    assert alone[1] <= alone[0]

    def quiet():
        before = switches(pid)
        time.sleep(QUIET_SECONDS)
        return switches(pid) == before

    # The first looks may see the last of what ended just now.
    await_that(quiet, "nothing in it wakes up by itself")
    print(
        f"resident {alone[0] / MIB:.1f} MiB, proportional {alone[1] / MIB:.1f} MiB; with "
        f"{CONNECTIONS} connections {with_connections[0] / MIB:.1f} MiB"
    )
