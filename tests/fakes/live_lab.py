"""A whole lab as its user has it: the `atoll` command, and what can be seen from outside."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.guests.interface import GuestAgent
from atoll.model.errors import AtollError
from atoll.settings import load_settings
from atoll.storage.engine import ManagedEngine
from atoll.storage.locks import Locks
from atoll.wiring import open_agents, open_engine
from atoll_lab import blueprint
from atoll_lab.guests.control import GuestShell
from atoll_lab.places import Places, places
from atoll_lab.running import Lab, open_lab
from atoll_lab.up import instance_uuid
from atoll_lab.vcenter.control import Control

ATOLL = Path(sys.executable).with_name("atoll")
GROUP = blueprint.GROUP
LUNS = tuple(lun.name for lun in blueprint.LUNS)
PRODUCTION = tuple(sorted(host.iqn for host in blueprint.HOSTS if not host.island))
VMS = tuple(vm.name for vm in blueprint.VMS)
COMMAND_SECONDS = 600.0


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, read as JSON."""
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one sentence of a command that failed: nothing else but progress on standard error."""
        lines = [line for line in self.err.splitlines() if not re.match(r"\w+: [a-z ]+$", line)]
        assert len(lines) == 1, self.err
        sentence = lines[0].removeprefix("atoll: ")
        assert sentence != lines[0] and sentence.endswith("."), self.err
        assert not re.search(r"[.!?]\s+[A-Z]", sentence), f"more than one sentence: {sentence}"
        return sentence


@dataclass(frozen=True)
class Standing:
    """What must be the same again after a run that came to nothing."""

    points: tuple[str, ...]
    snapshots: tuple[str, ...]
    groups: tuple[str, ...]
    presented: tuple[tuple[str, tuple[str, ...]], ...]
    agents: Mapping[str, str]
    runs: tuple[str, ...]


@dataclass
class LiveLab:
    """A lab that is up."""

    name: str
    lab: Lab = field(init=False)

    def __post_init__(self) -> None:
        with open_lab(self.name) as opened:
            self.lab = opened

    @property
    def places(self) -> Places:
        """Where it keeps things."""
        return self.lab.places

    @property
    def engine(self) -> ManagedEngine:
        """Its storage."""
        return self.lab.engine

    @property
    def control(self) -> Control:
        """Its vCenter, from behind."""
        return self.lab.control

    def shell(self, vm: str) -> GuestShell:
        """The way into a guest that needs no agent."""
        return self.lab.shell(vm)

    def agent(self, vm: str) -> GuestAgent:
        """A channel of its own to a guest's agent."""
        return open_agents(load_settings(self.places.settings))[instance_uuid(self.name, vm)]

    def start(
        self, *arguments: str | bytes, settings: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `atoll …` on this lab, its output in pipes."""
        return subprocess.Popen(
            [ATOLL, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "ATOLL_CONFIG": str(settings or self.places.settings)},
        )

    def run(self, *arguments: str | bytes, settings: Path | None = None) -> Outcome:
        """Run `atoll …` on this lab to its end, whatever that is."""
        with self.start(*arguments, settings=settings) as process:
            try:
                out, err = process.communicate(timeout=COMMAND_SECONDS)
            except BaseException:
                process.kill()
                raise
        return Outcome(process.returncode, out.decode(), err.decode())

    def check(self, *arguments: str | bytes, settings: Path | None = None) -> Outcome:
        """Run `atoll …`, which must succeed."""
        outcome = self.run(*arguments, settings=settings)
        assert outcome.status == 0, outcome
        assert "Traceback" not in outcome.err, outcome
        return outcome

    def settings(
        self, name: str, changes: Mapping[str, str | int | float | Path | list[str]]
    ) -> Path:
        """A copy of the settings with changes, keyed `section.name`; one file for each `name`.

        A section that it does not have is added.

        It lies beside the original, so that relative paths in it mean the same.
        """
        lines, section = [], ""
        here = self.places.settings.read_text().splitlines()
        sections = {line.strip("[]") for line in here if line.startswith("[")}
        missing = {key.partition(".")[0] for key in changes} - sections
        for line in [*here, *(f"[{each}]" for each in sorted(missing))]:
            if line.startswith("["):
                section = line.strip("[]")
                lines.append(line)
                lines += [
                    f"{key.partition('.')[2]} = {_toml(value)}"
                    for key, value in changes.items()
                    if key.startswith(f"{section}.")
                ]
            elif f"{section}.{line.partition(' ')[0]}" not in changes:
                lines.append(line)
        path = self.places.root / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        assert load_settings(path) != load_settings(self.places.settings), changes
        return path

    def standing(self) -> Standing:
        """How the site stands now."""
        engine = self.engine
        groups = tuple(sorted(group.name for group in engine.groups()))
        return Standing(
            points=tuple(item["point"]["id"] for item in self.check("points", "--json").json),
            snapshots=tuple(taken.name for group in groups for taken in engine.snapshots(group)),
            groups=groups,
            presented=tuple(
                sorted((item.lun, tuple(item.initiators)) for item in engine.presentations())
            ),
            agents={
                row["name"]: row["state"] for row in self.check("agent", "list", "--json").json
            },
            runs=tuple(sorted(path.name for path in (self.places.state / "runs").glob("*"))),
        )

    def snapshots_on_disk(self) -> list[Path]:
        """The snapshots' subvolumes, recorded or not."""
        return list((self.places.pool / "snapshots").iterdir())

    def assert_in_order(self) -> Standing:
        """Nothing is held, in work or left over: only what the next increment needs is there."""
        standing = self.standing()
        assert standing.agents == dict.fromkeys(VMS, "idle")
        assert standing.runs == ()
        assert standing.groups == tuple(sorted(set(self.lab.record.lun_groups.values())))
        assert standing.presented == tuple((lun, PRODUCTION) for lun in LUNS)
        present = {row["vm"] for row in self.check("inventory", "--json").json}
        newest = {
            item["point"]["vm"]: {
                (disk["group"], item["point"]["snapshot"]) for disk in item["point"]["disks"]
            }
            for item in self.check("points", "--json").json
            if item["point"]["vm"] in present
        }
        needed = set().union(*newest.values())
        assert sorted(standing.snapshots) == sorted(snapshot for _, snapshot in needed)
        assert len(self.snapshots_on_disk()) == len(standing.snapshots)
        return standing


def until(ready: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer of `ready`, asked again and again; AssertionError when there is none."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.1)
    return answer


def lab_up(name: str, *options: str) -> None:
    """`atoll lab up`."""
    done = subprocess.run(
        [ATOLL, "lab", "up", name, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def lab_down(name: str) -> None:
    """`atoll lab down`."""
    done = subprocess.run([ATOLL, "lab", "down", name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def remains(name: str, runtime: Path | None = None) -> list[str]:
    """What is left of a lab that was taken down: files, mounts, loop devices, processes.

    `runtime` is its storage's runtime directory, if it is known.
    """
    root = str(places(name).root)
    found = [root] if Path(root).exists() else []
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"{root}/" in line]
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    found += [line for line in loops.splitlines() if f"{root}/" in line]
    found += [f"process {pid}: {command}" for pid, command in _processes() if f"{root}/" in command]
    if runtime is not None:
        found += [str(runtime)] if runtime.exists() else []
    return found


def runtime_directory(name: str) -> Path:
    """Where the storage daemons of a lab that is up keep their sockets."""
    engine = open_engine(load_settings(places(name).settings))
    assert isinstance(engine, ManagedEngine)
    return engine.runtime_directory


def lock_group(live: LiveLab) -> Any:
    """Keep the LUN group from changing while the block lasts: a snapshot waits, guests held."""
    return Locks(runtime_directory(live.places.name)).held(GROUP)


def agent_state(agent: GuestAgent) -> str:
    """What an agent says it does; `away` when it does not answer."""
    try:
        return agent.status().state
    except AtollError:
        return "away"


def _processes() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
        except OSError:
            continue  # it ended meanwhile
        found.append((int(entry.name), command))
    return found


def _toml(value: str | int | float | Path | list[str]) -> str:
    if isinstance(value, list):
        return json.dumps(value)
    return json.dumps(str(value)) if isinstance(value, str | Path) else str(value)
