"""A Python that has lost what only POSIX has, before the agent is imported into it: nearly Windows.

Python's own library is loaded first, because it chose its half of itself when
it started. `serve` runs the agent's Windows service on it, with diskshadow
and the volumes replaced:

    python without_posix.py DISKSHADOW DIRECTORY CONFIG
"""

import concurrent.futures  # noqa: F401
import ctypes  # noqa: F401
import getpass  # noqa: F401
import http.server  # noqa: F401
import logging  # noqa: F401
import os
import select  # noqa: F401
import selectors  # noqa: F401
import signal
import socketserver
import ssl  # noqa: F401
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import threading
import time
from pathlib import Path

LOST_MODULES = ("fcntl", "pwd", "grp", "termios", "resource")
LOST = (
    (os, "fork geteuid getgrouplist pidfd_open set_blocking O_DIRECTORY O_NOFOLLOW O_NONBLOCK"),
    (signal, "SIGHUP pidfd_send_signal"),  # subprocess needs SIGKILL here
    (time, "CLOCK_BOOTTIME clock_gettime"),
    (socketserver, "UnixStreamServer ThreadingUnixStreamServer"),
)
AGENT = Path(__file__).resolve().parents[2] / "agent"


def lose_posix() -> None:
    """From here on, imports and look-ups find what they would find on Windows."""
    for name in LOST_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in LOST:
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = "win32"
    sys.path.insert(0, str(AGENT))


def replace_windows(program: str, directory: str) -> None:
    """Its diskshadow and its volumes, which only a real one has."""
    from atoll_agent.windows import volumes, vss

    volumes.fixed_volumes = lambda: ["C:\\", "E:\\"]
    vss.ShadowCopies.__init__.__defaults__ = (program, Path(directory))


def serve(program: str, directory: str, config: str) -> int:
    """The agent's service until standard input ends."""
    replace_windows(program, directory)
    from atoll_agent.config import load_config
    from atoll_agent.windows.__main__ import serve as run

    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    return run(load_config(Path(config)), stop)


if __name__ == "__main__":
    lose_posix()
    sys.exit(serve(*sys.argv[1:]))
