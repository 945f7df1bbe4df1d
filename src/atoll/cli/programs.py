"""Where the programs that commands start are found."""

import os


def find_programs() -> None:
    """Storage tools live in sbin, which cron and plain `su` leave out of PATH."""
    have = os.environ.get("PATH", os.defpath).split(os.pathsep)
    missing = [place for place in ("/usr/local/sbin", "/usr/sbin", "/sbin") if place not in have]
    os.environ["PATH"] = os.pathsep.join([*have, *missing])
