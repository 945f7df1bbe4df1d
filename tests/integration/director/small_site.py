"""A whole site on one machine without virtual machines: everything real but vCenter and ESX.

Three agents as they ship, each with a file system of its own to freeze on a loop device, and
PostgreSQL in one of them; LUNs of two groups in the embedded engine, with VMFS volumes and the
VMs' disks on them; a repository; the simulated vCenter. `back_up` is the product's, told of by
settings like a user's. What the agents freeze is not what lies on the LUNs: that a snapshot of a
hold is worth what its proof says is shown in the lab.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from private_guest import PG_BIN, AgentProcess, Guest, await_that, mounted, postgres, run

from agent_wire import AgentWire
from atoll.director.policy import Way
from atoll.guests.authority import Authority, Credentials
from atoll.guests.channel import AgentChannel
from atoll.guests.enrolment import enrol
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.consistency import ConsistencyProof
from atoll.model.errors import AtollError
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from atoll.service.backup import BackupResult, back_up, clean_site
from atoll.service.resuming import Resumed, resume_runs
from atoll.service.retire import needed_snapshots
from atoll.service.site import Site
from atoll.settings import load_settings
from atoll.storage.engine import ManagedEngine
from atoll.storage.interface import StorageEngine
from atoll.storage.locks import Locks
from atoll.wiring import create_system, open_engine, open_site
from atoll_lab.blueprint import HOSTS
from atoll_lab.pool import create_loop_pool, destroy, image
from atoll_lab.vcenter.control import Control, NewDisk
from atoll_lab.vcenter.simulator import Simulator
from atoll_lab.vmfs import Volume, format_volume
from fake_fabric import FileFabric

USER, PASSWORD = "backup@vsphere.local", "s3cret-word"
MIB = 1 << 20
LUN_BYTES, DISK_BYTES = 600 * MIB, 2 * MIB
LEASE_SECONDS, BUDGET_SECONDS = 15.0, 12.0
"""Of the settings: long enough on a busy machine, where nobody is to be late."""

SHORT_LEASE_SECONDS, SHORT_BUDGET_SECONDS = 6.0, 3.0
SHORT: Mapping[str, object] = {
    "lease_seconds": SHORT_LEASE_SECONDS,
    "budget_seconds": SHORT_BUDGET_SECONDS,
}
"""For rows in which somebody waits for the end of one."""

PG_PORT = 5561

GROUPS = {"vmfs1": "gold", "vmfs2": "silver"}
"""Each datastore's LUN group; the LUN has the datastore's name."""

DISKS = {
    "db1": ("vmfs1", "vmfs2"),
    "app1": ("vmfs2",),
    "web1": ("vmfs1",),
    "bare1": ("vmfs1",),
}
"""Where each VM's disks lie. bare1 has no agent and is held by a VMware snapshot."""

VMS = tuple(DISKS)
HELD = ("db1", "app1", "web1")
"""The VMs with an agent: one with PostgreSQL on ext4, one with XFS, one whose agent lies on the
file system that it freezes."""


def soak(*values: object) -> Any:
    """A row of a table that is like another one, and so is left to the long repeats."""
    return pytest.param(*values, marks=pytest.mark.soak)


SOUND = {"db1": "app", "app1": "filesystem", "web1": "filesystem", "bare1": "filesystem"}
"""What the points are called when nothing happens."""


def uuid_of(vm: str) -> str:
    """A VM's instance UUID."""
    return f"50000000-0000-4000-8000-{VMS.index(vm):012}"


class At:
    """A Progress that does something at given stages of the run, each once, in the run's thread.

    `prepare`: nobody was asked anything. `hold`: all are prepared, nobody is frozen. `snapshot`:
    all are frozen, no snapshot was asked for. `release`: all were asked to thaw. `proof`: vCenter
    was asked again, all is judged next.
    """

    def __init__(self, **actions: Callable[[], object]) -> None:
        self.actions = actions
        self.notes: list[str] = []

    def stage(self, vm: str, stage: str, total_bytes: int = 0) -> None:
        if not vm and (act := self.actions.pop(stage, None)):
            act()

    def advance(self, vm: str, done_bytes: int) -> None:
        """Of no interest."""

    def note(self, vm: str, text: str) -> None:
        self.notes.append(f"{vm}: {text}")


@dataclass
class SmallGuest:
    """One guest: the file system that its agent freezes, the agent, and the wire to it."""

    name: str
    mount: Path
    config: Path
    wire: AgentWire
    agent: AgentProcess

    def know(self, agent: EnrolledAgent, credentials: Credentials) -> None:
        """Talk to the agent under another certificate from now on, straight and not over the wire."""
        self.agent.channel = AgentChannel(
            dataclasses.replace(agent, port=self.wire.agent_port), credentials
        )

    def serves(self, seconds: float) -> bool:
        """Whether a write reaches the file system within that time."""
        done = threading.Event()

        def write() -> None:
            # Overwritten in place: a full disk takes it too.
            descriptor = os.open(self.mount / "probe", os.O_WRONLY | os.O_DSYNC)
            try:
                os.pwrite(descriptor, os.urandom(16), 0)
            finally:
                os.close(descriptor)
            done.set()

        threading.Thread(target=write, daemon=True).start()
        return done.wait(seconds)


class RestartableSimulator:
    """The simulated vCenter, which can go away and come back as it was."""

    def __init__(self, directory: Path, fabric: FileFabric) -> None:
        self._directory = directory
        self._fabric = fabric
        self._running: Simulator | None = None
        self.start_again()

    def start_again(self) -> None:
        """Serve; on the port, with the certificate, hosts and VMs of last time. Repeatable."""
        if self._running is None:
            self._running = Simulator(self._directory, self._fabric, USER, PASSWORD)

    def stop(self) -> None:
        """Go away, sessions and all. Repeatable."""
        if self._running is not None:
            self._running.close()
            self._running = None


@dataclass
class SmallSite:
    """The site, how to break it, and how it must stand afterwards."""

    directory: Path
    settings: Path
    pool: Path
    fabric: FileFabric
    simulator: RestartableSimulator
    guests: dict[str, SmallGuest] = field(default_factory=dict)
    longest_hold_seconds: float = 0.0
    """What a guest may have to wait for that the last run held: budget and lease."""
    database: Guest | None = None

    @property
    def control(self) -> Control:
        """vCenter from behind."""
        return Control(self.directory / "vcenter")

    @property
    def short_settings(self) -> Path:
        """The same with a short lease and budget."""
        return self.directory / "short.toml"

    @property
    def registry(self) -> AgentRegistry:
        """The director's list of agents."""
        return AgentRegistry(self.directory / "agents")

    def enrolled(self, vm: str) -> EnrolledAgent:
        """An agent as the director knows it."""
        found = self.registry.get(uuid_of(vm))
        assert found is not None
        return found

    @contextmanager
    def opened(
        self, *, accept_less: bool = True, engine: StorageEngine | None = None, **hold: object
    ) -> Iterator[Site]:
        """The site as a command opens it. `hold` changes its policy."""
        site = open_site(self.settings, accept_less=accept_less)
        policy = dataclasses.replace(site.hold, **hold)  # type: ignore[arg-type]
        site = dataclasses.replace(site, hold=policy)
        if engine is not None:
            site = dataclasses.replace(site, engine=lambda: engine)
        try:
            yield site
        finally:
            site.close()

    def back_up(
        self,
        at: At | None = None,
        *,
        vms: Sequence[str] = VMS,
        accept_less: bool = True,
        engine: StorageEngine | None = None,
        **hold: object,
    ) -> BackupResult:
        """Back up VMs as `atoll backup` does; all of them, if nothing else is said."""
        with self.opened(accept_less=accept_less, engine=engine, **hold) as site:
            self.longest_hold_seconds = site.hold.budget_seconds + site.hold.lease_seconds
            return back_up(site, vms, at or At())

    def hold_alone(self, at: At, **changes: object) -> BackupResult:
        """Back up the VMs with an agent, which have no other way to be held."""
        return self.back_up(at, **{"vms": HELD, "ways": (Way.DIRECT,), **changes})  # type: ignore[arg-type]

    def clean(self, *, drop_interrupted: bool = False) -> list[str]:
        """`atoll cleanup`."""
        with self.opened() as site:
            return clean_site(site, drop_interrupted=drop_interrupted)

    def resume(self, at: At | None = None) -> list[Resumed]:
        """`atoll resume`."""
        with self.opened() as site:
            return resume_runs(site, None, at or At())

    def engine(self) -> ManagedEngine:
        """The storage, opened anew."""
        engine = open_engine(load_settings(self.settings))
        assert isinstance(engine, ManagedEngine)
        return engine

    @contextmanager
    def storage_keeps_waiting(self, group: str, seconds: float) -> Iterator[None]:
        """Another user of the storage works on a LUN group for so long, counted from the start."""
        locked, done = threading.Event(), threading.Event()

        def work() -> None:
            with Locks(self.engine().runtime_directory).held(group):
                locked.set()
                done.wait(seconds)

        worker = threading.Thread(target=work)
        worker.start()
        locked.wait()
        try:
            yield
        finally:
            done.set()
            worker.join()

    def serve_again_by_their_lease(self) -> None:
        """No guest stays frozen longer than its lease and what it may take to freeze.

        `longest_hold_seconds` says how long that is.
        """
        limit = self.longest_hold_seconds
        with ThreadPoolExecutor(len(self.guests)) as pool:
            serving = pool.map(lambda guest: guest.serves(limit), self.guests.values())
            frozen = [vm for vm, serves in zip(self.guests, serving, strict=True) if not serves]
        assert not frozen, f"still frozen after their lease: {frozen}"

    def mend(self) -> None:
        """Whatever a test broke works again."""
        self.simulator.start_again()
        for vm, guest in self.guests.items():
            guest.wire.mend()
            if guest.agent.process.poll() is None:
                guest.agent.process.send_signal(18)
            else:
                guest.agent.start()
            await_that(lambda guest=guest: _state(guest) == "idle", f"{vm} is idle")
        self.control.clear_faults()
        for vm in VMS:
            _add_vm(self.control, vm)
            self.control.set_power(vm, True)

    def assert_in_order(self) -> None:
        """Nothing is held, under way or left over; only what the next increment needs is there."""
        assert {vm: _state(guest) for vm, guest in self.guests.items()} == dict.fromkeys(
            self.guests, "idle"
        )
        with self.opened() as site:
            points = site.repository().points()
            with_snapshot = [vm.name for vm in site.vcenter().inventory().vms if vm.has_snapshot]
        assert with_snapshot == [], "VMware snapshots were left"
        engine = self.engine()
        kept = {
            (group.name, taken.name)
            for group in engine.groups()
            for taken in engine.snapshots(group.name)
        }
        assert kept == needed_snapshots(points)
        on_disk = list((self.pool / "snapshots").iterdir())
        assert len(on_disk) == len(kept), "snapshots nobody knows of are on the disk"
        assert {group.name for group in engine.groups()} == set(GROUPS.values()), "clones were left"
        assert list((self.directory / "state/runs").glob("*")) == [], "runs are still recorded"


def proofs(result: BackupResult) -> Mapping[str, ConsistencyProof]:
    """The proof of each VM's point, by name."""
    return {point.vm: point.proof for point in result.points}


def assert_called(result: BackupResult, **changes: str) -> None:
    """The points are called as without any fault, but for those named."""
    found = {vm: str(proof.consistency) for vm, proof in proofs(result).items()}
    expected = {**SOUND, **changes}
    assert found == {vm: expected[vm] for vm in found}, proofs(result)


def assert_reasons(result: BackupResult, vm: str, *patterns: str) -> None:
    """The point says exactly this."""
    found = proofs(result)[vm].reasons
    assert len(found) == len(patterns), found
    for reason, pattern in zip(found, patterns, strict=True):
        assert re.fullmatch(pattern, reason), reason


def _state(guest: SmallGuest) -> str:
    try:
        return guest.agent.channel.status().state
    except AtollError:
        return "away"


@contextmanager
def small_site(directory: Path) -> Iterator[SmallSite]:
    """Stand the site up, and take it down whatever happened."""
    with ExitStack() as stack:
        settings = directory / "atoll.toml"
        storage, vcenter = directory / "storage", directory / "vcenter"
        stack.callback(destroy, storage)
        pool = create_loop_pool(storage, 6 << 30)
        _write_settings(settings, 1)
        engine = _storage(settings)
        stack.callback(shutil.rmtree, engine.runtime_directory, ignore_errors=True)
        stack.callback(engine.stop)
        fabric = _fabric(engine, pool)
        simulator = RestartableSimulator(vcenter, fabric)
        stack.callback(simulator.stop)
        for file, changes in ((settings, {}), (directory / "short.toml", SHORT)):
            _write_settings(file, Control(vcenter).endpoint().port, **changes)
        _add_vms(Control(vcenter), fabric)
        Repository.create(directory / "repository", create_key_file(directory / "repository.key"))
        authority = Authority.open(directory / "agents")
        site = SmallSite(directory, settings, pool, fabric, simulator)
        site.database = stack.enter_context(_database(directory / "db1"))
        with ThreadPoolExecutor(len(HELD)) as starting:
            places = [directory / vm for vm in HELD]
            mounts = [
                site.database.mount,
                stack.enter_context(_file_system(places[1], "xfs")),
                stack.enter_context(_file_system(places[2], "ext4")),
            ]
            tars = [
                _enrol(authority, vm, uuid_of(vm), place)
                for vm, place in zip(HELD, places, strict=True)
            ]
            started = [
                starting.submit(_start, site, authority, *each)
                for each in zip(HELD, places, mounts, tars, strict=True)
            ]
        for vm, each in zip(HELD, started, strict=True):
            guest = each.result()
            stack.callback(guest.wire.close)
            stack.callback(guest.agent.stop)
            site.guests[vm] = guest
        yield site


def _write_settings(path: Path, vcenter_port: int, **changes: object) -> None:
    director = {"lease_seconds": LEASE_SECONDS, "budget_seconds": BUDGET_SECONDS, **changes}
    (path.parent / "vcenter.password").write_text(PASSWORD + "\n")
    path.write_text(
        f"""
[vcenter]
host = "127.0.0.1"
port = {vcenter_port}
user = "{USER}"
password_file = "vcenter.password"
ca_file = "vcenter/ca.pem"

[[storage]]
name = "san1"
driver = "embedded"
root = "storage/pool"
durability = "cache"
reserve_bytes = {MIB}

[repository]
location = "repository"
key_file = "repository.key"

[agents]
directory = "agents"

[director]
state_directory = "state"
lease_seconds = {director["lease_seconds"]}
budget_seconds = {director["budget_seconds"]}
ways = ["direct", "vmware"]
vmware_seconds = 30
"""
    )


def _storage(settings: Path) -> ManagedEngine:
    loaded = load_settings(settings)
    create_system(loaded.storage[0])
    engine = open_engine(loaded)
    assert isinstance(engine, ManagedEngine)
    for lun, group in GROUPS.items():
        engine.create_group(group)
        engine.create_lun(group, lun, LUN_BYTES)
    return engine


def _fabric(engine: ManagedEngine, pool: Path) -> FileFabric:
    """VMFS volumes with the VMs' disks on the LUNs, which the production hosts see."""
    fabric = FileFabric()
    production = [host.iqn for host in HOSTS if not host.island]
    for group in engine.groups():
        for lun in group.luns:
            where = image(pool, group.name, lun.name)
            format_volume(where, LUN_BYTES, lun.name, bytes.fromhex(lun.naa.removeprefix("naa.")))
            with Volume(where) as volume:
                for vm, stores in DISKS.items():
                    if lun.name in stores:
                        _put_disk(volume, vm, stores.index(lun.name), pool.parent)
            fabric.add(where, lun.naa)
            fabric.present(lun.naa, *production)
    return fabric


def _put_disk(volume: Volume, vm: str, number: int, scratch: Path) -> None:
    content = scratch / f"{vm}-{number}.raw"
    content.write_bytes(os.urandom(64 << 10))
    volume.mkdir(f"/{vm}")
    volume.create_disk(f"/{_vmdk(vm, number)}", DISK_BYTES, content)
    if number == 0:
        volume.write_file(f"/{vm}/{vm}.vmx", f'displayName = "{vm}"\n'.encode())


def _vmdk(vm: str, number: int) -> str:
    return f"{vm}/{vm}_{number}.vmdk"


def _add_vms(control: Control, fabric: FileFabric) -> None:
    for host in HOSTS:
        if not host.island:
            control.add_portal(host.name, fabric.portal)
        control.rescan(host.name)
    for vm in VMS:
        _add_vm(control, vm)


def _add_vm(control: Control, vm: str) -> None:
    stores = DISKS[vm]
    disks = [
        NewDisk(2000 + number, f"Hard disk {number + 1}", _vmdk(vm, number), DISK_BYTES, store)
        for number, store in enumerate(stores)
    ]
    control.add_vm(
        *(vm, stores[0], f"{vm}/{vm}.vmx", disks, HOSTS[0].name, "debian12_64Guest"),
        *(uuid_of(vm), True),
    )


@contextmanager
def _file_system(place: Path, kind: str) -> Iterator[Path]:
    disk, mount = place / "disk.img", place / "disk"
    place.mkdir(exist_ok=True)
    disk.touch()
    os.truncate(disk, 400 * MIB)
    run(f"mkfs.{kind}", "-q", disk)
    with mounted(disk, mount):
        (mount / "probe").write_bytes(bytes(16))
        yield mount


@contextmanager
def _database(place: Path) -> Iterator[Guest]:
    place.mkdir()
    for each in (place.parent, place):
        each.chmod(0o755)
    with _file_system(place, "ext4") as mount:
        guest = Guest(place, mount, place / "disk.img", PG_PORT)
        (mount / "pg").mkdir()
        shutil.chown(mount / "pg", "postgres", "postgres")
        run(PG_BIN / "initdb", "-D", mount / "pg/data", "-A", "trust", "--no-sync", user="postgres")
        with postgres(mount / "pg/data", place / "pgsock", PG_PORT, place / "pg.log") as server:
            guest.psql("CREATE TABLE ledger (id serial PRIMARY KEY, note text)")
            (place / "postmaster.pid").write_text(str(server.pid))
            yield guest


def _enrol(authority: Authority, vm: str, uuid: str, place: Path) -> tuple[Path, int]:
    """The tar of an enrolment, and the port that the agent is to listen on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    application = {
        "kind": "postgresql",
        "name": "main",
        "data_directory": str(place / "disk/pg/data"),
        "witness": "SELECT count(*) FROM ledger",
    }
    applications = [application] if vm == "db1" else []
    out = place / "agent.tar"
    enrol(authority, vm, uuid, out, address="127.0.0.1", port=port, applications=applications)
    return out, port


def _start(
    site: SmallSite, authority: Authority, vm: str, place: Path, mount: Path, made: tuple[Path, int]
) -> SmallGuest:
    tar, port = made
    # web1's agent, its certificate and its settings lie on what it freezes.
    root = mount / "root" if vm == "web1" else place / "root"
    agent = _run_agent(tar, root, mount, AgentChannel(site.enrolled(vm), authority.credentials))
    wire = AgentWire(port)
    # The director knows the wire's end; the test's own channel goes straight to the agent.
    site.registry.put(dataclasses.replace(site.enrolled(vm), port=wire.port))
    return SmallGuest(vm, mount, root / "etc/atoll/agent.json", wire, agent)


def _run_agent(tar: Path, root: Path, mount: Path, channel: AgentChannel) -> AgentProcess:
    """Unpack and start an agent that freezes one file system."""
    root.mkdir()
    with tarfile.open(tar) as archive:
        archive.extractall(root, filter="data")
    config = root / "etc/atoll/agent.json"
    # Nothing of this machine but the test's own disk may ever be frozen.
    given = {**json.loads(config.read_text()), "freeze_only": [str(mount)], "discover": False}
    config.write_text(json.dumps(given))
    program = root / "usr/lib/atoll/atoll-agent.pyz"
    return AgentProcess(config, program, tar.with_suffix(".log"), channel)


def postgres_processes(postmaster: int) -> list[int]:
    """A server's processes: its postmaster and all children."""
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(postmaster)], capture_output=True, text=True, check=False
    )
    return [postmaster, *map(int, done.stdout.split())]


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def more_guests(site: SmallSite, directory: Path, count: int) -> Iterator[list[AgentChannel]]:
    """Agents in guests that vCenter does not know, each with its own file system to freeze."""
    authority = Authority.open(site.directory / "agents")
    with ExitStack() as stack:

        def start(number: int) -> AgentProcess:
            vm, place = f"more{number}", directory / f"more{number}"
            uuid = f"50000000-0000-4000-9000-{number:012}"
            with starting_one_by_one:
                mount = stack.enter_context(_file_system(place, "ext4"))
                tar, _ = _enrol(authority, vm, uuid, place)
                stack.callback(site.registry.remove, uuid)
            known = site.registry.get(uuid)
            assert known is not None
            return _run_agent(
                tar, place / "root", mount, AgentChannel(known, authority.credentials)
            )

        starting_one_by_one = threading.Lock()
        with ThreadPoolExecutor(4) as pool:
            agents = list(pool.map(start, range(count)))
        for agent in agents:
            stack.callback(agent.stop)
        yield [agent.channel for agent in agents]
