"""Stands in the agent's place inside a guest: answers `testify` with what PostgreSQL says."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

LOG = Path("/var/log/postgresql/postgresql-15-main.log")
QUERY = "SELECT max(id) || ' ' || count(*) FROM ledger"


def port():
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == "io.atoll.witness.0":
            return Path("/dev") / name.parent.name
    return None


def replayed():
    """Bytes between the last `redo starts at` and `redo done at`."""
    found = re.findall(r"redo (?:starts|done) at ([0-9A-F]+)/([0-9A-F]+)", LOG.read_text())
    if len(found) < 2:
        return 0
    first, last = ((int(high, 16) << 32) + int(low, 16) for high, low in found[-2:])
    return last - first


def testify():
    asked = subprocess.run(
        ["psql", "-XAtq", "bench", "-c", QUERY],
        capture_output=True,
        text=True,
        user="postgres",
        cwd="/tmp",
        check=False,
    )
    kernel = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return {
        "guest_time": time.time(),
        "uptime_seconds": float(Path("/proc/uptime").read_text().split()[0]),
        "filesystems": [
            {
                "mount": mount,
                "source": source,
                "fstype": kind,
                "recovered": f"EXT4-fs ({source[5:]}): recovery complete" in kernel,
            }
            for source, mount, kind in mounts
            if source.startswith("/dev/")
        ],
        "applications": [
            {
                "kind": "postgresql",
                "name": "15/main",
                "answering": asked.returncode == 0,
                "witness": asked.stdout.strip() or None,
                "wal_replayed_bytes": replayed(),
                "repair_ran": False,
                "position": "",
                "detail": asked.stderr.strip(),
            }
        ],
    }


def main():
    device = port()
    if device is None:
        time.sleep(3600)
        return
    channel = os.open(device, os.O_RDWR)
    pending = b""
    while True:
        pending += os.read(channel, 65536)
        *lines, pending = pending.split(b"\n")
        for line in lines:
            reply = {"id": json.loads(line)["id"], "result": testify()}
            os.write(channel, json.dumps(reply).encode() + b"\n")


main()
