"""Runs the driver's helper for every connection: what sshd does on a real SAN, without its cost.

Forked from one process that has imported it all: starting Python anew takes
seconds in an emulated guest.
"""

import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, "/usr/lib/atoll-san")

from atoll.storage.drivers.san.helper.main import main

ADDRESS = ("10.0.2.15", 5000)


def serve() -> None:
    """For ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.create_server(ADDRESS) as listener:
        Path("/run/lab-bridge").touch()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for descriptor in (0, 1):
                    os.dup2(connection.fileno(), descriptor)
                connection.close()
                os._exit(main([]))
            connection.close()


serve()
