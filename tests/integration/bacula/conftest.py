"""A captured guest and a Bacula of its own for each test, and nothing left of either."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from bacula_site import BaculaSite, await_that
from captured_guest import CapturedGuest

from atoll.fuse import device


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[CapturedGuest]:
    """db1, not captured yet."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = CapturedGuest(tmp_path)
    try:
        made.make()
        yield made
    finally:
        made.close()


@pytest.fixture
def bacula(guest: CapturedGuest, tmp_path: Path) -> Iterator[BaculaSite]:
    """A Bacula whose File Daemon finds the guest's settings; not started."""
    site = BaculaSite(tmp_path / "bacula", guest.settings)
    try:
        yield site
        site.close()
        assert mounts_below(tmp_path) == [guest.work / "disks/pool"]
        # A script of the client may outlive the job that it belongs to by a moment.
        await_that(
            lambda: processes_with(tmp_path / "bacula") == [],
            lambda: str(processes_with(tmp_path / "bacula")),
        )
    finally:
        site.close()
        for place in device.mounts():
            if tmp_path in place.parents:
                subprocess.run(["umount", "-l", place], check=False)


def mounts_below(top: Path) -> list[Path]:
    """Whatever is mounted there."""
    places = [
        Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return [place for place in places if top in place.parents]


def processes_with(word: Path) -> list[str]:
    """Command lines that it is on."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(word) in (line := place.read_bytes()):
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found
