"""Makes standard input and output one socket, which is what the sidecar's server speaks on."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PIECE_BYTES = 1 << 18


@contextmanager
def on_a_socket() -> Iterator[None]:
    """Have descriptors 0 and 1 be one socket. sshd gives pipes; threads then carry between them."""
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        yield
        return
    requests, replies = os.dup(0), os.dup(1)
    ours, theirs = socket.socketpair()
    for descriptor in (0, 1):
        os.dup2(theirs.fileno(), descriptor)
    theirs.close()
    threading.Thread(target=_carry_in, args=(requests, ours), daemon=True).start()
    out = threading.Thread(target=_carry_out, args=(ours, replies), daemon=True)
    out.start()
    try:
        yield
    finally:
        for descriptor in (0, 1):
            os.dup2(2, descriptor)  # the far end sees that nothing more comes
        out.join()
        ours.close()


def _carry_in(requests: int, channel: socket.socket) -> None:
    try:
        while data := os.read(requests, _PIECE_BYTES):
            channel.sendall(data)
        channel.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the server has ended


def _carry_out(channel: socket.socket, replies: int) -> None:
    try:
        while data := channel.recv(_PIECE_BYTES):
            while data:
                data = data[os.write(replies, data) :]
    except OSError:
        channel.shutdown(socket.SHUT_RDWR)  # nobody listens any more
