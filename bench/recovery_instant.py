"""Instant recovery of the lab's `db1`: how long until it is on, asks for a login and answers SQL.

The guest is emulated and shares two processors with the storage and everything else, so only its times
beside the same guest's normal ones say something about recovery. Seconds count from the start of the
`atoll` command; the VM is on when vCenter says so. For pgbench the guest runs alone: production's two
are off, then the recovered one. Windows of one kind alternate with those of the other where they can.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll_lab.guests import qemu
from atoll_lab.guests.control import GuestShell
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.load import postgres_load
from atoll_lab.places import places
from atoll_lab.running import Lab, open_lab, read_record
from bench.report import Figure, figure, say

_ATOLL = Path(sys.executable).with_name("atoll")
_HOST, _HOME, _NAME = "esx2.lab", "esx2-local", "db1-bench"
_WINDOW_SECONDS = 30
_PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Started:
    """Seconds since the command began."""

    power_on: float
    login: float
    sql: float


def instant(rounds: int, lab_name: str = "recover") -> list[Figure]:
    """From both sources, so often each, in the lab of that name; it is made unless it is there."""
    made = read_record(places(lab_name)) is None
    subprocess.run([_ATOLL, "lab", "up", lab_name], check=True, stdout=subprocess.DEVNULL)
    try:
        return _measured(rounds, lab_name)
    finally:
        if made:
            subprocess.run([_ATOLL, "lab", "down", lab_name], check=True)


def _measured(rounds: int, lab_name: str) -> list[Figure]:
    with open_lab(lab_name) as lab:
        _atoll(lab, "backup", "db1")
        started: dict[str, list[_Started]] = {"snapshot": [], "repository": []}
        for turn in range(rounds):
            for source, found in started.items():
                with _recovered(lab, source) as one:
                    found.append(one)
                say(f"{source} {turn}: on {one.power_on:.1f} s, SQL {one.sql:.1f} s")
        normal, ours = _pgbench(lab, rounds)
    figures = []
    for source, found in started.items():
        figures += [
            figure(f"instant_{source}_seconds", [each.power_on for each in found], "s"),
            figure(f"instant_{source}_login_seconds", [each.login for each in found], "s"),
            figure(f"instant_{source}_sql_seconds", [each.sql for each in found], "s"),
        ]
    middle = statistics.median(normal)
    ratios = tuple(each / middle for each in ours)
    ratio = statistics.median(ratios)
    return [
        *figures,
        figure("instant_pgbench_normal_tps", normal, "/s"),
        figure("instant_pgbench_repository_tps", ours, "/s"),
        Figure(
            "instant_pgbench_ratio", ratio, "ratio", ratios, "the same guest on its LUNs", ratio
        ),
    ]


@contextmanager
def _recovered(lab: Lab, source: str) -> Iterator[_Started]:
    began = time.monotonic()
    command = subprocess.Popen(
        [
            *(_ATOLL, "--config", lab.places.settings, "recover", "vm", "db1@latest"),
            *("--from", source, "--host", _HOST, "--name", _NAME, "--datastore", _HOME),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        run_dir = lab.run_directory(_NAME)
        on = _when(lambda: _is_on(lab), began)
        login = _when(lambda: _asks_for_login(run_dir), began)
        shell = GuestShell(run_dir / "control.sock")
        sql = _when(lambda: _answers(shell), began)
        if command.wait():
            raise RuntimeError(f"the recovery ended with {command.returncode}")
        yield _Started(on, login, sql)
    finally:
        command.wait()
        _atoll(lab, "recover", "end", _NAME, "--discard")


def _pgbench(lab: Lab, rounds: int) -> tuple[list[float], list[float]]:
    """Transactions a second in windows: of production's db1, and of it from the repository."""
    normal, ours = [], []
    with _paused(lab, "app1"):
        for _ in range(rounds):
            normal.append(_window(lab.shell("db1")))
        with _recovered(lab, "repository"), _paused(lab, "db1"):
            shell = lab.shell(_NAME)
            for _ in range(rounds):
                ours.append(_window(shell))
        for _ in range(rounds):
            normal.append(_window(lab.shell("db1")))
    say(f"pgbench: normal {statistics.median(normal):.0f}/s, ours {statistics.median(ours):.0f}/s")
    return normal, ours


def _window(shell: GuestShell) -> float:
    load = postgres_load(shell)
    load.start(_WINDOW_SECONDS + 5)
    time.sleep(_WINDOW_SECONDS + 3)
    rates = [each.per_second for each in load.rates()][2:_WINDOW_SECONDS]
    load.stop()
    return statistics.mean(rates)


@contextmanager
def _paused(lab: Lab, vm: str) -> Iterator[None]:
    """Stop a guest's processors, so that it takes none of this machine's."""
    guest = qemu.status(lab.run_directory(vm))
    if guest is None:
        raise RuntimeError(f"{vm} does not run")
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(guest.pid, signal.SIGCONT)


def _is_on(lab: Lab) -> bool:
    state = json.loads((lab.places.vcenter / "state.json").read_text())
    return any(vm["name"] == _NAME and vm["powered_on"] for vm in state["vms"])


def _asks_for_login(run_dir: Path) -> bool:
    return "login:" in (run_dir / "serial.log").read_text(errors="replace")


def _answers(shell: GuestShell) -> bool:
    try:
        postgres_load(shell).committed()
    except LabGuestError:
        return False
    return True


def _when(ready: Callable[[], bool], began: float) -> float:
    """Seconds from `began` to the first time that it is."""
    while not ready():
        if time.monotonic() - began > _PATIENCE_SECONDS:
            raise RuntimeError("it did not come up in time")
        time.sleep(_POLL_SECONDS)
    return time.monotonic() - began


def _atoll(lab: Lab, *words: str) -> None:
    command = [str(_ATOLL), "--config", str(lab.places.settings), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
