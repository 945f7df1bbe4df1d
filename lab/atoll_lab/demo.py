"""`make demo`: stand up a site, back it up while it works, restore, prove, and report."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from atoll.cli.output import seconds, size
from atoll_lab.load import Loads
from atoll_lab.places import places
from atoll_lab.running import open_lab

console = Console(highlight=False)
NAME = "demo"
OUT = Path("build/demo")


def atoll(*arguments: str) -> None:
    """Run an atoll command where the reader sees it; stop the demo if it fails."""
    console.print(f"\n[bold cyan]$ atoll {shlex.join(arguments)}[/]")
    subprocess.run([_command(), *arguments], check=True, env=_environment())


def atoll_quietly(*arguments: str) -> None:
    """The same, unseen."""
    subprocess.run(
        [_command(), *arguments], check=True, stdout=subprocess.DEVNULL, env=_environment()
    )


def atoll_json(*arguments: str) -> Any:
    """The same for figures, unseen."""
    done = subprocess.run(
        [_command(), *arguments, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    return json.loads(done.stdout)


def _command() -> str:
    return str(Path(sys.executable).with_name("atoll"))


def _environment() -> dict[str, str]:
    return {**os.environ, "ATOLL_CONFIG": str(places(NAME).settings)}


def chapter(title: str, text: str) -> None:
    """A heading and why the next step matters."""
    console.print()
    console.print(Panel(text, title=f"[bold]{title}[/]", title_align="left", box=box.ROUNDED))


def main() -> None:
    """The whole show; the lab is taken down at the end, whatever happens."""
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    try:
        _show(started)
    finally:
        atoll("lab", "down", NAME)


def _show(started: float) -> None:
    chapter(
        "A site in a box",
        "Two real Debian guests boot under QEMU. Their disks are VMDKs inside VMFS 6 on two LUNs over "
        "real iSCSI; db1 keeps PostgreSQL's data on one LUN and its log on the other. The first time, "
        "building the guests takes some minutes; later it takes seconds.",
    )
    # What a demo that was cut short left would tell another story.
    atoll_quietly("lab", "down", NAME)
    atoll("lab", "up", NAME)
    atoll("inventory")
    with open_lab(NAME) as lab, Loads(lab) as loads:
        loads.start()
        console.print("Both databases now work under a constant load.")
        time.sleep(5)
        chapter(
            "A full backup, with no VMware snapshot",
            "Agents flush while the databases serve. Then both guests stand still for about a second, "
            "the storage snapshots both LUNs at one instant, and everything else happens behind them.",
        )
        atoll("backup", "db1", "app1")
        time.sleep(5)
        chapter(
            "And an increment",
            "The storage says which blocks of the LUNs changed; the VMFS map says to which disk they "
            "belong. No changed block tracking, nothing to consolidate.",
        )
        atoll("backup", "db1", "app1")
        loads.stop()
    atoll("points")
    atoll("point", "db1@latest")
    chapter("Files, disks", "Straight from the restore point, read in a sandboxed process.")
    atoll("files", "app1@latest", "/srv/files")
    atoll("restore", "file", "app1@latest", "/srv/files", str(OUT / "files"))
    atoll("restore", "disk", "db1@latest", str(OUT / "db1-data.vmdk"), "--disk", "2",
          "--format", "vmdk")  # fmt: skip
    atoll("verify")
    chapter(
        "The proof",
        "Each restore point boots from the repository, with no network, on a throw-away overlay. Then "
        "the database itself says what it had to repair, and what its last row is.",
    )
    atoll("prove", "db1@latest")
    atoll("prove", "app1@latest")
    report(atoll_json("points"), time.monotonic() - started)


def report(points: Sequence[dict[str, Any]], demo_seconds: float) -> None:
    """Write report.json and print the same figures for people."""
    latest = {item["point"]["vm"]: item for item in points}
    runs = sorted({item["point"]["run"] for item in points})
    by_run = {run: [i["point"] for i in points if i["point"]["run"] == run] for run in runs}
    db1 = latest["db1"]
    proof = db1["point"]["proof"]
    evidence = db1["evidence"][-1]
    mariadb = latest["app1"]["evidence"][-1]

    def held(vm: str) -> float:
        hold = latest[vm]["point"]["proof"]["hold"]
        return float(hold["thawed_at"] - hold["began_at"])

    def total(run: str, field: str) -> int:
        return sum(disk[field] for point in by_run[run] for disk in point["disks"])

    worst = max(
        (item["point"]["proof"]["consistency"] for item in points),
        key=["app", "filesystem", "crash"].index,
    )
    figures = {
        "hold_seconds_db1": held("db1"),
        "hold_seconds_app1": held("app1"),
        "group_snapshot_seconds": proof["snapshot_finished_at"] - proof["snapshot_started_at"],
        "full_read_bytes": total(runs[0], "read_bytes"),
        "incremental_read_bytes": total(runs[-1], "read_bytes"),
        "disk_bytes": total(runs[0], "size_bytes"),
        "stored_bytes": sum(total(run, "stored_bytes") for run in runs),
        "prove_boot_seconds": evidence["boot_seconds"],
        "wal_replayed_bytes": evidence["facts"]["wal_replayed_bytes"],
        "mariadb_replayed_bytes": mariadb["facts"]["wal_replayed_bytes"],
        "consistency": worst,
        "demo_seconds": demo_seconds,
    }
    (OUT / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    _print(figures, evidence, mariadb)


def _print(figures: dict[str, Any], postgresql: dict[str, Any], mariadb: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("db1 held", seconds(figures["hold_seconds_db1"]), "PostgreSQL under load")
    table.add_row("app1 held", seconds(figures["hold_seconds_app1"]), "MariaDB under load")
    table.add_row(
        "LUN group snapshot", seconds(figures["group_snapshot_seconds"]), "both LUNs, one instant"
    )
    table.add_row(
        "full read", size(figures["full_read_bytes"]), f"of {size(figures['disk_bytes'])} of disks"
    )
    table.add_row(
        "increment read",
        size(figures["incremental_read_bytes"]),
        f"{figures['incremental_read_bytes'] / figures['disk_bytes']:.1%} of the disks",
    )
    table.add_row("repository", size(figures["stored_bytes"]), "both runs, encrypted")
    table.add_row(
        "answering again", seconds(figures["prove_boot_seconds"]), "db1, booted from the repository"
    )
    table.add_row("PostgreSQL replayed", size(figures["wal_replayed_bytes"]), "of write-ahead log")
    table.add_row("MariaDB replayed", size(figures["mariadb_replayed_bytes"]), "of redo log")
    table.add_row("consistency", figures["consistency"], "the weakest of all points")
    console.print()
    console.print(Panel(table, title="[bold]What just happened[/]", box=box.ROUNDED))
    console.print(f"db1:  {postgresql['summary']}", markup=False)
    console.print(f"app1: {mariadb['summary']}", markup=False)
    console.print(
        f"\nAll of it took {seconds(figures['demo_seconds'])}. "
        f"Figures: {OUT / 'report.json'}. Restored files: {OUT / 'files'}."
    )


if __name__ == "__main__":
    main()
