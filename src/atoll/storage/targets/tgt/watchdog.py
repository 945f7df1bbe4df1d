"""Lets a stopped daemon run again: after a while, or as soon as whoever stopped it dies.

Run as a script of its own, with the standard library only, so that it starts in milliseconds and
outlives its parent. Arguments: a pidfd it inherits, and seconds. Says "armed" on standard output;
a byte on standard input disarms it, the end of input is the parent's death.
"""

import os
import select
import signal
import sys


def main(pidfd: int, limit_seconds: float) -> None:
    """Wait for the first of: disarmed, parent gone, time over."""
    os.write(sys.stdout.fileno(), b"armed\n")
    heard, _, _ = select.select([sys.stdin.fileno()], [], [], limit_seconds)
    if heard and os.read(sys.stdin.fileno(), 1):
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
