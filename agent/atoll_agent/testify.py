"""What a restored guest says of itself, asked over a virtio-serial port.

One line of JSON each way: `{"id": 1, "method": "testify"}` is answered with
`{"id": 1, "result": {…}}` or `{"id": 1, "error": "…"}`. The port is a channel
of the hypervisor: no network and no certificate is involved, and nothing the
port can ask changes anything.
"""

import json
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atoll_agent.application import Application
from atoll_agent.clock import Deadline, boottime
from atoll_agent.kernellog import read_kernel_log, recovered_devices
from atoll_agent.mounts import device_name, freezable, read_mounts

PORT_NAME = "io.atoll.witness.0"

_PORTS = Path("/sys/class/virtio-ports")
_MAX_LINE_BYTES = 4096
_ANSWER_SECONDS = 20.0
_IDLE_SECONDS = 0.5


def give_testimony(applications: Sequence[Application]) -> dict[str, Any]:
    """The testimony: time, file systems with `recovered`, applications with their logs' word."""
    try:
        recovered: frozenset[str] | None = recovered_devices(read_kernel_log())
    except OSError:
        # Not readable in a container; then nobody knows, which None says.
        recovered = None
    return {
        "guest_time": time.time(),
        "uptime_seconds": boottime(),
        "filesystems": [
            {
                "mount": mount.mountpoint,
                "source": mount.source,
                "fstype": mount.fstype,
                "recovered": None if recovered is None else device_name(mount) in recovered,
            }
            for mount in freezable(read_mounts())
        ],
        "applications": [
            asdict(application.testify(Deadline(_ANSWER_SECONDS))) for application in applications
        ],
    }


def find_port(name: str = PORT_NAME) -> Path | None:
    """The device of the named virtio-serial port, if the guest has one."""
    for entry in sorted(_PORTS.glob("*/name")):
        with suppress(OSError):
            if entry.read_text().strip() == name:
                return Path("/dev") / entry.parent.name
    return None


def serve_port(
    descriptor: int, answer: Callable[[], dict[str, Any]], stop: threading.Event
) -> None:
    """Answer on an open port until `stop` is set."""
    received = b""
    while not stop.is_set():
        ready, _, _ = select.select([descriptor], [], [], _IDLE_SECONDS)
        if not ready:
            continue
        part = os.read(descriptor, _MAX_LINE_BYTES)
        if not part:
            # Nobody on the other side: the port stays readable, so wait without reading.
            received = b""
            stop.wait(_IDLE_SECONDS)
            continue
        received += part
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            _write(descriptor, json.dumps(_reply(line, answer)).encode() + b"\n")
        if len(received) > _MAX_LINE_BYTES:
            received = b""


def _reply(line: bytes, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        return {"id": None, "error": "not a line of JSON"}
    if not isinstance(request, dict) or set(request) != {"id", "method"}:
        return {"id": None, "error": "expected an object with id and method"}
    number = request["id"]
    if isinstance(number, bool) or not isinstance(number, int):
        return {"id": None, "error": "id must be a whole number"}
    if request["method"] != "testify":
        return {"id": number, "error": "unknown method"}
    return {"id": number, "result": answer()}


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
