"""The helper's command line: answers calls on standard input, or serves again after a restart."""

import argparse
import sys
from collections.abc import Sequence

from atoll.model.errors import AtollError
from atoll.storage.drivers.san.helper import lock
from atoll.storage.drivers.san.helper.calls import READING, Calls
from atoll.storage.drivers.san.helper.channel import on_a_socket
from atoll.storage.drivers.san.helper.failures import system_errors, warn
from atoll.storage.drivers.san.helper.pool import resume_all
from atoll.storage.drivers.san.helper.volumes import PREFIX, sweep_readers
from atoll.storage.sidecar.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Without arguments the helper of one connection; the status for the shell."""
    parser = argparse.ArgumentParser(prog="atoll-san")
    commands = parser.add_subparsers(dest="command")
    restore = commands.add_parser("restore", help="serve again what was served before a restart")
    restore.add_argument("volume_group")
    restore.add_argument("pool")
    arguments = parser.parse_args(argv)
    calls = Calls()
    try:
        with system_errors("start the helper"):
            _tidy()
        if arguments.command == "restore":
            with system_errors("serve what was served"):
                for sentence in calls.restore(arguments.volume_group, arguments.pool):
                    sys.stdout.write(f"{sentence}\n")
            return 0
        with on_a_socket():
            try:
                serve(calls.by_name(), reading=READING, lock=lock.PATH)
            finally:
                calls.close()
    except AtollError as error:
        warn(str(error))
        return error.exit_status
    return 0


def _tidy() -> None:
    """Undo what a killed helper left: writes held back, readers' devices. Others are left alone."""
    with lock.held_if_free() as ours:
        if ours:
            for name in resume_all(PREFIX):
                warn(f"Let writes to {name} go on, which a helper held that is gone.")
            sweep_readers()
