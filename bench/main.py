"""`make bench-main`: what a backup costs the database, and what it brings, on a lab of its own.

Everything runs on one machine: the guests under software emulation, the storage, and Atoll, which
in production reads on an island of its own. Atoll's copying is run at the lowest priority here, so
that what the guest loses is what the hold and the shared storage cost it, and not the missing second
machine. The peer runs where in-guest agents run: in the guest.

What a backup costs the database is told twice. `pgbench_ratio_atoll` and
`pgbench_ratio_in_guest_agent` are the throughput over one minute from the start of a full backup,
whether it takes that long or, as the peer does, longer. `…_while_running` is the throughput while
Atoll's backup itself ran, however short that was.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from atoll_lab.guests.control import GuestShell
from atoll_lab.guests.load import DatabaseLoad, postgres_load
from atoll_lab.places import places
from atoll_lab.running import Lab, open_lab
from bench.report import Figure, figure, publish, say

NAME = "bench"
TIMED_OUT = 124
ROUNDS = int(os.environ.get("ATOLL_BENCH_ROUNDS", "3"))
QUIET_SECONDS = 20.0
WINDOW_SECONDS = 60.0
"""The peer reads for minutes under emulation; the first minute tells what each costs."""


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds since the epoch between which something ran."""

    began: float
    ended: float


def atoll(*arguments: str) -> Any:
    """Run a command at the lowest priority; what it printed as JSON."""
    done = subprocess.run(
        ["nice", "-n", "19", str(Path(sys.executable).with_name("atoll")), *arguments, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "ATOLL_CONFIG": str(places(NAME).settings)},
    )
    return json.loads(done.stdout)


def lab(*arguments: str) -> None:
    """Run a lab command where the reader sees it."""
    subprocess.run([str(Path(sys.executable).with_name("atoll")), "lab", *arguments], check=True)


def main() -> None:
    """Measure all and publish."""
    lab("up", NAME)
    try:
        with open_lab(NAME) as running:
            figures = [*_backups(running), *_recovery()]
    finally:
        lab("down", NAME)
    publish("main", figures)


def _backups(running: Lab) -> list[Figure]:
    shell = running.shell("db1")
    load = postgres_load(shell)
    load.start(6 * 3600)
    quiet: list[Window] = []
    ours: list[Window] = []
    running_ours: list[Window] = []
    peers: list[Window] = []
    fulls: list[Any] = []
    increments: list[Any] = []
    _prepare_peer(shell)
    try:
        for number in range(1, ROUNDS + 1):
            say(f"round {number} of {ROUNDS}: backups under load")
            quiet.append(_rest())
            began = time.time()
            fulls.append(atoll("backup", "db1", "app1", "--full"))
            running_ours.append(Window(began, time.time()))
            time.sleep(max(0.0, began + WINDOW_SECONDS - time.time()))
            ours.append(Window(began, began + WINDOW_SECONDS))
            quiet.append(_rest())
            increments.append(atoll("backup", "db1", "app1"))
            quiet.append(_rest())
            say(f"round {number} of {ROUNDS}: the in-guest agent")
            peers.append(_peer(shell))
        quiet.append(_rest())
        normal = _rate(load, quiet)
        ratio_ours, ratio_running, ratio_peer = (
            [_rate(load, [window]) / normal for window in windows]
            for windows in (ours, running_ours, peers)
        )
    finally:
        load.stop()
    return [
        *_hold_figures([*fulls, *increments]),
        figure("full_read_bytes", [_total(run, "read_bytes") for run in fulls], "bytes"),
        figure(
            "incremental_read_bytes",
            [_total(run, "read_bytes") for run in increments],
            "bytes",
            "full read",
            mean(_total(run, "read_bytes") for run in fulls),
        ),
        figure("full_copy_seconds", [run["copy_seconds"] for run in fulls], "s"),
        figure(
            "incremental_copy_seconds",
            [run["copy_seconds"] for run in increments],
            "s",
            "full copy",
            mean(run["copy_seconds"] for run in fulls),
        ),
        figure("pgbench_tps_quiet", [_rate(load, [window]) for window in quiet], "tps"),
        figure("pgbench_ratio_atoll", ratio_ours, "ratio", "in-guest agent", mean(ratio_peer)),
        figure("pgbench_ratio_atoll_while_running", ratio_running, "ratio", "no backup", 1.0),
        figure("pgbench_ratio_in_guest_agent", ratio_peer, "ratio", "no backup", 1.0),
        figure(
            "full_backup_seconds",
            [window.ended - window.began for window in running_ours],
            "s",
        ),
    ]


def _hold_figures(runs: Sequence[Any]) -> list[Figure]:
    def holds(vm: str) -> list[float]:
        found = [
            point["proof"]["hold"] for run in runs for point in run["points"] if point["vm"] == vm
        ]
        return [hold["thawed_at"] - hold["began_at"] for hold in found]

    snapshots = [taken for run in runs for taken in run["snapshots"]]
    return [
        figure("hold_seconds_db1", holds("db1"), "s"),
        figure("hold_seconds_app1", holds("app1"), "s"),
        figure("hold_seconds_group", [run["hold_seconds"] for run in runs], "s"),
        figure(
            "group_snapshot_seconds",
            [item["finished_at"] - item["started_at"] for item in snapshots],
            "s",
        ),
        figure("write_pause_seconds", [item["pause_seconds"] for item in snapshots], "s"),
    ]


def _recovery() -> list[Figure]:
    say("restores and restore tests")
    target = places(NAME).root / "restored.raw"
    restores = []
    for _ in range(ROUNDS):
        target.unlink(missing_ok=True)
        began = time.monotonic()
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("atoll")), "restore", "disk", "db1@latest"),
                *(str(target), "--disk", "1"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "ATOLL_CONFIG": str(places(NAME).settings)},
        )
        restores.append(time.monotonic() - began)
    restored = float(target.stat().st_blocks * 512)
    proofs = [atoll("prove", "db1@latest") for _ in range(ROUNDS)]
    return [
        figure("restore_disk_seconds", restores, "s"),
        figure("restore_disk_bytes", [restored], "bytes"),
        figure("prove_boot_seconds", [proof["boot_seconds"] for proof in proofs], "s"),
        figure(
            "wal_replayed_bytes",
            [float(proof["facts"]["wal_replayed_bytes"]) for proof in proofs],
            "bytes",
        ),
    ]


def _rest() -> Window:
    began = time.time()
    time.sleep(QUIET_SECONDS)
    return Window(began, time.time())


def _rate(load: DatabaseLoad, windows: Sequence[Window]) -> float:
    """Transactions a second in the windows, by the load's own record of each second."""
    rates = [
        rate.per_second
        for rate in load.rates()
        if any(window.began + 1 <= rate.at <= window.ended for window in windows)
    ]
    return mean(rates)


def _total(run: Any, field: str) -> float:
    return float(sum(disk[field] for point in run["points"] for disk in point["disks"]))


def _prepare_peer(shell: GuestShell) -> None:
    """A disk of its own for the peer's repository, so that it need not share the database's."""
    shell.check(
        "set -e; for d in /sys/block/vd*; do "
        '[ "$(cat $d/serial)" = atoll-scratch ] && disk=/dev/${d##*/}; done; '
        "mkfs.ext4 -q -F $disk; mkdir -p /run/peer; mount $disk /run/peer; "
        "RESTIC_PASSWORD=x restic -q -r /run/peer/repo init",
        600,
    )


def _peer(shell: GuestShell) -> Window:
    """restic inside the guest, reading all its file systems again, as our full backups do."""
    began = time.time()
    done = shell.run(
        f"RESTIC_PASSWORD=x timeout {WINDOW_SECONDS:.0f} restic -q -r /run/peer/repo --no-cache backup "
        "--force --one-file-system / /var/lib/postgresql /var/lib/postgresql-wal",
        WINDOW_SECONDS + 60,
    )
    if done.status not in (0, TIMED_OUT):
        raise SystemExit(f"restic failed in the guest: {done.errors.strip()}")
    return Window(began, time.time())


if __name__ == "__main__":
    main()
