"""`python -m atoll_lab.san.bridge PORT`: standard input and output lead to a port of 127.0.0.1.

Stands where `ssh root@san1 …` would on a real site.
"""

import os
import select
import socket
import sys

_PIECE_BYTES = 1 << 18


def bridge(port: int) -> None:
    """Copy both ways until the far side hangs up."""
    with socket.create_connection(("127.0.0.1", port)) as far:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ready = [0, far.fileno()]
        while far.fileno() in ready:
            for source in select.select(ready, [], [])[0]:
                data = os.read(source, _PIECE_BYTES)
                if source == 0:
                    if data:
                        far.sendall(data)
                    else:
                        far.shutdown(socket.SHUT_WR)
                        ready.remove(0)
                elif data:
                    while data:
                        data = data[os.write(1, data) :]
                else:
                    return


if __name__ == "__main__":
    bridge(int(sys.argv[1]))
