"""`make bench-hold`: how long guests stand still for a snapshot, one, ten and a hundred of them.

A hundred agents as they ship, each with its certificate, its watchdog and a real file system to
freeze on a loop device, run on this machine; the director asks them over TLS as it asks guests,
and the snapshot is the embedded engine's. They hold no database, and their file systems lie in
memory: each freeze ends with a flush, and a hundred flushes on this machine's one disk would measure
that disk. So what is measured is what Atoll costs; that a hundred guests have one machine's
processors here, and not their own, is part of it. The lab's two guests hold real databases on real
disks under load.
"""

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from unittest.mock import patch

from atoll.director.capture import Capture, Means, capture
from atoll.director.plan import make_plan
from atoll.director.policy import HoldPolicy
from atoll.director.vmware_hold import SnapshotKeeper
from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel, open_channels
from atoll.guests.enrolment import enrol
from atoll.guests.registry import AgentRegistry
from atoll.model.consistency import Consistency
from atoll.model.errors import AgentUnavailableError
from atoll.model.inventory import Placement, VirtualDisk, VirtualMachine
from atoll.model.plan import Plan, PlannedDisk, PlannedVm
from atoll.model.progress import Silent
from atoll.model.storage import GroupSnapshot
from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.interface import StorageEngine
from atoll.wiring import open_site
from atoll_agent import freezing
from atoll_lab.load import Loads
from atoll_lab.places import places
from atoll_lab.pool import create_loop_pool, destroy
from atoll_lab.running import open_lab
from bench.report import Figure, figure, high_figure, publish, say

NAME = "bench"
GUESTS = 100
ROUNDS = {1: 100, 10: 40, 100: 15}
GROUP = "bench"
FILE_SYSTEM_BYTES = 16 << 20
LEASE_SECONDS, BUDGET_SECONDS = 10.0, 5.0
LATE_LEASE_SECONDS, LATE_SECONDS = 1.0, 1.5
START_SECONDS = 60.0
BETWEEN_FREEZES_SECONDS = 0.1
REAL_ROUNDS = 10


@dataclass(frozen=True)
class Guest:
    """An agent that runs, and the mount point that it freezes."""

    uuid: str
    mount: Path
    channel: AgentChannel


def main() -> None:
    """Measure all and publish."""
    directory = Path(tempfile.mkdtemp(prefix="atoll-bench-", dir="/var/tmp"))
    memory = Path(tempfile.mkdtemp(prefix="atoll-bench-", dir="/dev/shm"))
    try:
        root = create_loop_pool(directory, 8 << 30)
        create_pool(root, "bench")
        engine = open_embedded(root, durability="cache")
        engine.create_group(GROUP)
        engine.create_lun(GROUP, "lun1", 1 << 30)
        try:
            with ExitStack() as stack:
                say(f"starting {GUESTS} agents")
                guests = stack.enter_context(_guests(directory, memory))
                figures = [
                    *(each for count in ROUNDS for each in _holds(guests[:count], engine)),
                    _false_claims(guests),
                ]
        finally:
            engine.stop()
    finally:
        destroy(directory)
        shutil.rmtree(directory)
        shutil.rmtree(memory)
    publish("hold", [*figures, *_real_guests()])


def _holds(guests: Sequence[Guest], engine: StorageEngine) -> list[Figure]:
    count = len(guests)
    say(f"{ROUNDS[count]} holds of {count} guests")
    snapshots: list[float] = []
    timed = engine.snapshot_group

    def snapshot_group(group: str, name: str) -> GroupSnapshot:
        began = time.monotonic()
        try:
            return timed(group, name)
        finally:
            snapshots.append(time.monotonic() - began)

    with patch.object(engine, "snapshot_group", snapshot_group):
        captures = [
            _capture(f"{count}-{number}", guests, engine) for number in range(ROUNDS[count])
        ]
    holds = [proof.hold for made in captures for proof in made.proofs.values()]
    held = [hold.seconds for hold in holds if hold is not None]
    group = [made.hold_seconds for made in captures]
    # Guests here have no application to flush, so what is neither the storage's nor the kernel's
    # is ours. All freeze at once, and the slowest is waited for.
    kernels = [
        max(proof.hold.freeze_seconds for proof in made.proofs.values() if proof.hold)
        for made in captures
    ]
    ours = [
        whole - taken - kernel
        for whole, taken, kernel in zip(group, snapshots, kernels, strict=True)
    ]
    name = f"hold_{count}_guests"
    figures = [
        figure(f"{name}_p50_seconds", held, "s"),
        high_figure(f"{name}_p99_seconds", held, "s"),
        figure(f"{name}_first_to_last_p50_seconds", group, "s"),
        high_figure(f"{name}_first_to_last_p99_seconds", group, "s"),
        figure(f"{name}_snapshot_seconds", snapshots, "s"),
        figure(f"{name}_kernel_seconds", kernels, "s"),
        figure(
            f"{name}_share_ours",
            [mine / all_ for mine, all_ in zip(ours, group, strict=True)],
            "ratio",
        ),
    ]
    if count == 1:
        figures += [
            figure("freeze_alone_seconds", [_bare_freeze(guests[0].mount) for _ in ours], "s"),
            high_figure("agent_overhead_p99_seconds", ours, "s"),
        ]
    return figures


def _capture(run: str, guests: Sequence[Guest], engine: StorageEngine) -> Capture:
    plan = Plan(run, tuple(_planned(guest) for guest in guests), ())
    agents = {guest.uuid: guest.channel for guest in guests}
    means = Means(agents, engine, _placement, cast(SnapshotKeeper, None))
    policy = HoldPolicy(lease_seconds=LEASE_SECONDS, budget_seconds=BUDGET_SECONDS)
    made = capture(plan, "atoll-bench", means, policy, Silent())
    engine.delete_snapshot(GROUP, "atoll-bench")
    wrong = [each for each in made.proofs.values() if each.consistency is Consistency.CRASH]
    assert not wrong, wrong[0].reasons
    return made


def _planned(guest: Guest) -> PlannedVm:
    disk = VirtualDisk(2000, "Hard disk 1", "ds1", "vm/vm.vmdk", 1 << 30, "persistent")
    vm = VirtualMachine(
        guest.uuid, guest.uuid, guest.uuid, "esx1", True, False, "debian", (disk,), False, ""
    )
    return PlannedVm(vm, (PlannedDisk(disk, GROUP, "uuid", ("lun1",)),), True)


def _placement(uuids: Sequence[str]) -> Mapping[str, Placement]:
    disks = ((2000, "ds1", "vm/vm.vmdk"),)
    return {uuid: Placement("esx1", ("ds1",), disks, True, False) for uuid in uuids}


def _bare_freeze(mount: Path) -> float:
    """FIFREEZE and FITHAW and nothing else."""
    # A freeze soon after another one is spared the grace periods of the kernel's RCU.
    time.sleep(BETWEEN_FREEZES_SECONDS)
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        began = time.monotonic()
        assert not freezing.freeze(descriptor)
        assert not freezing.thaw(descriptor)
        return time.monotonic() - began
    finally:
        os.close(descriptor)


def _false_claims(guests: Sequence[Guest]) -> Figure:
    """Thaws that come after the lease: how many of them claim that the hold was unbroken."""
    say(f"{len(guests)} thaws after the lease")

    def try_it(guest: Guest) -> float:
        guest.channel.prepare("late")
        guest.channel.freeze("late", LATE_LEASE_SECONDS, BUDGET_SECONDS)
        time.sleep(LATE_SECONDS)
        return float(guest.channel.thaw("late").held)

    with ThreadPoolExecutor(len(guests)) as pool:
        claims = list(pool.map(try_it, guests))
    return Figure("false_held_claims", sum(claims), "claims", tuple(claims))


@contextmanager
def _guests(directory: Path, memory: Path) -> Iterator[list[Guest]]:
    authority = Authority.open(directory / "agents")
    with ExitStack() as stack:
        guests = []
        for number in range(GUESTS):
            place = directory / f"guest{number}"
            place.mkdir()
            image = memory / f"guest{number}.img"
            mount = stack.enter_context(_file_system(image, place / "disk"))
            uuid = f"00000000-0000-4000-8000-{number:012}"
            stack.enter_context(_agent(authority, uuid, place, mount))
            guests.append((uuid, mount))
        channels = open_channels(AgentRegistry(authority.directory).agents(), authority.credentials)
        for channel in channels.values():
            _await(channel)
        yield [Guest(uuid, mount, channels[uuid]) for uuid, mount in guests]


@contextmanager
def _file_system(image: Path, mount: Path) -> Iterator[Path]:
    mount.mkdir()
    image.touch()
    os.truncate(image, FILE_SYSTEM_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@contextmanager
def _agent(authority: Authority, uuid: str, place: Path, mount: Path) -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tar = enrol(authority, uuid, uuid, place / "agent.tar", address="127.0.0.1", port=port)
    with tarfile.open(tar) as archive:
        archive.extractall(place, filter="data")
    config = place / "etc/atoll/agent.json"
    text = config.read_text().rstrip().removesuffix("}")
    config.write_text(f'{text}, "freeze_only": ["{mount}"], "discover": false}}')
    program = place / "usr/lib/atoll/atoll-agent.pyz"
    # Processes of one guest, not of a hundred, are what an agent looks through.
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM"]
    with (place / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [*apart, sys.executable, "-I", str(program), "serve", "--config", str(config)],
            stderr=log,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait(30)


def _await(channel: AgentChannel) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            channel.status()
        except AgentUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _real_guests() -> list[Figure]:
    atoll = str(Path(sys.executable).with_name("atoll"))
    subprocess.run([atoll, "lab", "up", NAME], check=True)
    try:
        site = open_site(places(NAME).settings)
        engine, vcenter = site.engine(), site.vcenter()
        vmware = vcenter.snapshots("bench")
        means = Means(site.agents(), engine, vcenter.placement, vmware)
        figures = []
        with open_lab(NAME) as lab, Loads(lab) as loads:
            loads.start(20)
            for names in (["db1"], ["db1", "app1"]):
                say(f"{REAL_ROUNDS} holds of the lab's {', '.join(names)} under load")
                captures = []
                for number in range(REAL_ROUNDS):
                    run = f"{len(names)}-{number}"
                    plan = make_plan(
                        run, names, vcenter.inventory(), engine.groups(), means.agents.keys()
                    )
                    captures.append(capture(plan, "atoll-bench", means, site.hold, Silent()))
                    engine.delete_snapshot(plan.groups[0], "atoll-bench")
                figures += _real_figures(len(names), captures)
        site.close()
    finally:
        subprocess.run([atoll, "lab", "down", NAME], check=True)
    return figures


def _real_figures(count: int, captures: Sequence[Capture]) -> list[Figure]:
    proofs = [proof for made in captures for proof in made.proofs.values()]
    assert all(proof.consistency is Consistency.APP for proof in proofs), proofs
    flushes = [
        max(state.flush_seconds for state in proof.hold.applications)
        for proof in proofs
        if proof.hold
    ]
    held = [proof.hold.seconds for proof in proofs if proof.hold]
    group = [made.hold_seconds for made in captures]
    name = f"hold_{count}_emulated_guests"
    return [
        figure(f"{name}_p50_seconds", held, "s"),
        high_figure(f"{name}_p99_seconds", held, "s"),
        figure(f"{name}_applications_seconds", flushes, "s"),
        figure(f"{name}_first_to_last_p50_seconds", group, "s"),
    ]


if __name__ == "__main__":
    main()
