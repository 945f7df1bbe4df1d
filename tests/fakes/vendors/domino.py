"""The console of a Domino 12 server, and Domino Backup with HCL's scripts for snapshots.

`load backup -s` leaves a process behind that does what the backup task and
HCL's backup_snapshot_start.sh and backup_snapshot.sh do.
"""

import os
import time
from pathlib import Path

from vendors.product import Product, say

START = {"in_backup_mode": False, "script_seconds": 8.0, "scripts": True, "data": ""}
STATUS_FILE = "dominobackup_snapshot.lck"


def main(product: Product, argv: list[str]) -> int:
    assert argv[1:] == ["-c", "load backup -s"], argv
    if Path.cwd() != Path(product.state()["data"]):
        return 1
    if refusal := product.fault("load backup -s"):
        say(refusal)
        return 1
    if os.fork():
        return 0
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    _back_up(product)
    os._exit(0)


def _back_up(product: Product) -> None:
    status = Path(product.state()["data"]) / STATUS_FILE
    product.set(in_backup_mode=True)
    product.note("backup mode")
    limit = time.monotonic() + product.state()["script_seconds"]
    # backup_snapshot_start.sh
    if product.state()["scripts"] and status.read_text().strip() == "REQUESTED":
        status.write_text("DOMINO-DONE\n")
        # backup_snapshot.sh
        while status.read_text().strip() != "DONE" and time.monotonic() < limit:
            time.sleep(0.05)
    product.set(in_backup_mode=False)
    product.note("normal mode")
