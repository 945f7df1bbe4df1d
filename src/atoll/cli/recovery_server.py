"""Serves the disks of a recovery: what `recover vm` starts, which loads little so as to begin soon."""

import os
import signal
import sys
from pathlib import Path

from atoll.cli.programs import find_programs
from atoll.model.errors import AtollError
from atoll.service.recovery_keeper import keep_serving
from atoll.service.site import Site
from atoll.wiring import open_site


def serve_until_ended(site: Site, recovery: str) -> None:
    """Serve, say `ready` on standard output, and go on until it is ended."""

    def ready() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        with Path(os.devnull).open("r+b") as nothing:
            for descriptor in (0, 1):
                os.dup2(nothing.fileno(), descriptor)
        os.chdir("/")

    keep_serving(site, recovery, ready)


def main(config: str, copy: str, recovery: str) -> None:
    """For the settings file and the copy that are named, if they are, and a recovery by its id."""
    find_programs()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        serve_until_ended(open_site(Path(config) if config else None, copy=copy or None), recovery)
    except AtollError as error:
        sys.stderr.write(f"atoll: {error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(*sys.argv[1:])
