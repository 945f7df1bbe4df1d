"""The guest's end of the lab's control channel: runs the commands that come in, each in a thread.

One JSON object a line. In: {"id", "cmd", "timeout"}; out: {"id", "rc", "out",
"err"}. A command that outlives its timeout (seconds) is killed with all its
children and answers 124, as timeout(1) does.
"""

import json
import os
import select
import signal
import subprocess
import threading
from pathlib import Path

PORT = "io.atoll.lab.0"
OUTPUT_LIMIT = 1 << 20
writing = threading.Lock()


def find_port() -> Path | None:
    """The device of the control port; None in a guest that was given none."""
    for entry in Path("/sys/class/virtio-ports").glob("*/name"):
        if entry.read_text().strip() == PORT:
            return Path("/dev") / entry.parent.name
    return None


def run(command: str, timeout: float) -> tuple[int, str, str]:
    """Run a shell command; its status, output and error output, each cut at OUTPUT_LIMIT."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        status = 124
    return status, _text(out), _text(err)


def answer(port: int, line: bytes) -> None:
    """Do what one request line asks; a line that is no request was cut off and is dropped."""
    try:
        request = json.loads(line)
        command, timeout = str(request["cmd"]), float(request["timeout"])
    except (ValueError, KeyError, TypeError):
        return
    status, out, err = run(command, timeout)
    reply = {"id": request.get("id"), "rc": status, "out": out, "err": err}
    data = json.dumps(reply).encode() + b"\n"
    with writing:
        while data:
            data = data[os.write(port, data) :]


def serve(path: Path) -> None:
    """Read requests for ever; the port reads as empty while the host is not connected."""
    port = os.open(path, os.O_RDWR)
    poll = select.poll()
    poll.register(port, select.POLLIN)
    pending = b""
    while True:
        events = poll.poll()
        chunk = os.read(port, 65536)
        if not chunk:
            # With the host gone poll reports a hang-up at once, always; waiting keeps the CPU free.
            if any(event & select.POLLHUP for _, event in events):
                signal.sigtimedwait([], 0.05)
            continue
        pending += chunk
        *lines, pending = pending.split(b"\n")
        for line in lines:
            if line.strip():
                threading.Thread(target=answer, args=(port, line), daemon=True).start()


def _text(data: bytes) -> str:
    return data[:OUTPUT_LIMIT].decode(errors="replace")


if __name__ == "__main__":
    found = find_port()
    if found is None:
        signal.pause()
    else:
        serve(found)
