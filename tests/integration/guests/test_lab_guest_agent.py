"""The real agent in a real guest: held, copied while held, let go, and the copy proven."""

import socket
import subprocess

import pytest

from atoll.guests.authority import Authority
from atoll.guests.channel import open_channels
from atoll.guests.enrolment import enrol
from atoll.guests.registry import AgentRegistry
from atoll.model.consistency import Consistency, ConsistencyProof, Hold
from atoll.model.points import RestorePoint
from atoll.model.progress import Silent
from atoll.recovery.prove import prove
from atoll_lab.guests.load import mariadb_load, postgres_load

pytestmark = [pytest.mark.lab, pytest.mark.needs_root]
ANSWERS = 300.0
UUID = "0a7011ab-0000-4000-8000-000000000001"
ROLES = {
    "db1": (
        ("system", "data", "wal"),
        {"kind": "postgresql", "name": "15-main", "database": "bench"},
        "until pg_isready -q; do sleep 0.2; done",
        postgres_load,
    ),
    "app1": (
        ("system",),
        {"kind": "mariadb", "name": "mariadb", "database": "shop"},
        "until mariadb-admin --silent ping; do sleep 0.2; done",
        mariadb_load,
    ),
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def restore_point(vm, held, thawed):
    hold = Hold(
        held.run,
        held.began_at,
        held.frozen_at,
        thawed.thawed_at,
        60.0,
        thawed.held,
        thawed.reason,
        held.applications,
        held.filesystems,
        held.clock_offset_seconds,
        held.clock_error_seconds,
    )
    proof = ConsistencyProof(vm, Consistency.APP, (), hold, "g", "s", 1.0, 1.1, "a", "a")
    return RestorePoint("p", "r", vm, UUID, 1.0, "g", "s", False, proof, (), "", "debian12")


@pytest.mark.parametrize("role", ROLES)
def test_a_copy_made_while_the_agent_held_the_guest_answers_as_it_was_held(role, boot, guest_place):
    labels, application, ready, make_load = ROLES[role]
    authority = Authority.open(guest_place / "agents")
    port = free_port()
    drive = enrol(
        authority,
        role,
        UUID,
        guest_place / "drive.tar",
        address="127.0.0.1",
        port=port,
        listen_port=8443,
        applications=[application | {"witness": "SELECT max(id) FROM ledger"}],
    )
    guest = boot(role, config_drive=drive, agent_port=port)
    shell = guest.shell
    assert shell.run(ready, ANSWERS).status == 0
    load = make_load(shell)
    load.start(600)
    log = "/run/lab/pgbench.log" if role == "db1" else "/run/lab/shop.log"
    shell.check(f"until [ $(grep -c ^progress {log}) -ge 2 ]; do sleep 0.2; done", ANSWERS)
    # The agent's log tells when it listens; then its port is asked once, not until it works.
    shell.check(
        "until grep -q listens /var/log/atoll-agent.log; do sleep 0.2; done",
        timeout_seconds=ANSWERS,
    )
    agent = open_channels(AgentRegistry(authority.directory).agents(), authority.credentials)[UUID]
    agent.prepare("run1")
    held = agent.freeze("run1", 60.0, 60.0)
    copies = []
    for label in labels:
        copy = guest_place / f"{label}.copy"
        subprocess.run(["cp", "--sparse=always", guest.run_dir / f"{label}.raw", copy], check=True)
        copies.append((label, str(copy)))
    thawed = agent.thaw("run1")
    assert thawed.held, thawed.reason
    assert all(one.held for one in held.applications), held
    load.stop()

    evidence = prove(
        restore_point(role, held, thawed), copies, ANSWERS, guest_place / "work", Silent()
    )
    assert evidence.passed, evidence
    [was] = held.applications
    label = f"{was.kind} {was.name}"
    assert was.witness is not None
    assert evidence.facts["evidence"] == "agent"
    assert evidence.facts[f"{label}: witness_as_held"] is True, evidence
    assert evidence.facts["repair_ran"] is False
