"""Growing LUNs of a real tgtd while they are used."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from atoll.storage.initiator import IscsiLun
from atoll.storage.targets.tgt import daemon as daemon_module
from atoll.storage.targets.tgt.lull import NoLullError, lull
from tgt_site import MIB, TgtSite, tgt_site

pytestmark = pytest.mark.needs_root

REACH = 3 * MIB
"""Each user of a LUN keeps to so much of it."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TgtSite]:
    with tgt_site(tmp_path) as one:
        for name in "ab":
            one.add(name)
        one.serve()
        yield one


class User(threading.Thread):
    """Writes, reads, flushes and unmaps as fast as it can, over a session it never renews."""

    def __init__(self, site: TgtSite, name: str, number: int, block: int, reconnect: bool) -> None:
        super().__init__(daemon=True)
        self.lun = site.connect(name, reconnect=reconnect)
        self._base = number * REACH
        self._block = block
        self._random = Random(number)
        self._ending = threading.Event()
        self._written: dict[int, int] = {}
        self.count = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                self._use()
        except Exception as error:  # noqa: BLE001 - kept for whoever ends it
            self.failure = error

    def _use(self) -> None:
        slot, number = self.count % 4, self.count + 1
        self.lun.write(self._base + slot * self._block, self._content(number))
        self._written[slot] = number
        self.count = number
        kind = self._random.randrange(8)
        if kind == 0:
            self.lun.flush()
        elif kind == 1:
            self.lun.unmap(self._base + REACH - 65536, 65536)
        elif kind == 2:
            self._check(self._random.choice(list(self._written)))

    def _check(self, slot: int) -> None:
        found = self.lun.read(self._base + slot * self._block, self._block)
        if found != self._content(self._written[slot]):
            raise AssertionError(f"write {self._written[slot]} is lost")

    def _content(self, number: int) -> bytes:
        return number.to_bytes(8, "little") * (self._block // 8)

    def wait_for(self, count: int) -> None:
        """Until it has written so many times."""
        while self.count < count and self.failure is None:
            self.join(0.005)

    def end(self) -> None:
        """Stop, and raise what went wrong or is lost."""
        self._ending.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        for slot in self._written:
            self._check(slot)


def use(site: TgtSite, *, reconnect: bool = False) -> list[User]:
    """Small and large writes, the latter asking for their data, to both LUNs."""
    users = [
        User(site, name, number, block, reconnect)
        for name, number, block in (
            ("a", 0, 4096), ("a", 1, 65536), ("a", 2, 512 << 10), ("b", 0, 4096), ("b", 1, 512 << 10),
        )
    ]  # fmt: skip
    for user in users:
        user.start()
    return users


def grow_under_load(site: TgtSite, times: int, *, reconnect: bool = False) -> list[User]:
    users = use(site, reconnect=reconnect)
    for step in range(1, times + 1):
        for user in users:
            user.wait_for(user.count + 2)
        for name in "ab":
            site.add(name, (16 + step) * MIB)
        site.serve()
        with site.connect("a") as newcomer:
            assert newcomer.read_capacity() == (16 + step) * MIB
    for user in users:
        user.end()
        assert user.lun.read_capacity() == (16 + times) * MIB
    return users


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*_: object) -> None:
        raise AssertionError("sessions were dropped to grow")

    monkeypatch.setattr(daemon_module.GroupDaemon, "_reopen_dropping_sessions", told)
    # On a machine that is busy with other things the daemon takes its time to rest.
    monkeypatch.setattr("atoll.storage.targets.tgt.lull._LIMIT_SECONDS", 20)
    monkeypatch.setattr("atoll.storage.targets.tgt.lull._DEAF_SECONDS", 40)


@pytest.mark.usefixtures("no_fallback")
def test_growing_under_load_ends_no_session(site: TgtSite) -> None:
    for user in grow_under_load(site, 30):
        user.lun.close()
    assert site.serve() == []


@pytest.mark.soak
@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("durability", ["cache", "disk"])
def test_growing_a_thousand_times(tmp_path: Path, durability: daemon_module.Durability) -> None:
    with tgt_site(tmp_path, durability=durability) as site:
        for name in "ab":
            site.add(name)
        site.serve()
        for user in grow_under_load(site, 1000):
            user.lun.close()


def test_the_grown_part_is_used_at_once(site: TgtSite) -> None:
    with site.connect("a", reconnect=False) as lun:
        site.add("a", 64 * MIB)
        site.serve()
        lun.write(63 * MIB, b"1" * MIB)
        assert lun.read(62 * MIB, 2 * MIB) == bytes(MIB) + b"1" * MIB


def test_without_the_right_to_a_lull_sessions_are_dropped_and_no_write(
    site: TgtSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_permitted(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("atoll.storage.targets.tgt.lull.load_pause", not_permitted)
    for user in grow_under_load(site, 2, reconnect=True):
        user.lun.close()


def test_a_daemon_that_does_not_rest_is_heard_again(
    site: TgtSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.storage.targets.tgt.lull._LIMIT_SECONDS", 0.2)
    users = use(site)
    process = site.targets.process(site.group)
    assert process is not None
    # It has fewer LUNs than that, so it is never seen at rest.
    with process, pytest.raises(NoLullError), lull(process, luns=50):
        pytest.fail("there is no lull")
    for user in users:
        user.wait_for(user.count + 20)
        user.end()
        user.lun.close()


DYING = """
import os, signal, sys
from pathlib import Path
from atoll.storage.targets.tgt.lull import lull
from atoll.storage.targets.tgt.process import find_process
from atoll.storage.targets.tgt.tgt_socket import TgtSocket
process = find_process(TgtSocket(Path(sys.argv[1])))
with lull(process, luns=2):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_whoever_dies_in_a_lull_leaves_nobody_deaf(site: TgtSite) -> None:
    users = use(site)
    for user in users:
        user.wait_for(5)
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(site.run / f"{site.group}.tgt")],
        check=False, env={**os.environ},
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL
    with site.connect("b") as newcomer:
        newcomer.read(0, 512)
    for user in users:
        user.wait_for(user.count + 20)
        user.end()
        user.lun.close()


def test_logging_in_during_lulls(site: TgtSite) -> None:
    """Connections that are made while nobody is heard become sessions afterwards."""
    ending = threading.Event()
    failures: list[Exception] = []

    def come_and_go() -> None:
        try:
            while not ending.is_set():
                with site.connect("a") as lun:
                    lun.write(8 * MIB, b"1" * 4096)
        except Exception as error:  # noqa: BLE001 - the test fails on it
            failures.append(error)

    visitors = [threading.Thread(target=come_and_go) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    staying = site.connect("a", reconnect=False)
    for step in range(1, 21):
        site.add("a", (16 + step) * MIB)
        site.serve()
        staying.write(0, b"2" * 4096)
    ending.set()
    for visitor in visitors:
        visitor.join()
    assert failures == []
    assert staying.read_capacity() == 36 * MIB
    staying.close()


def test_a_lun_left_offline_comes_back(site: TgtSite) -> None:
    """As a version without lulls leaves it when it dies in the middle."""
    assert isinstance(site.connect("a"), IscsiLun)
    management = site.targets._daemon(site.group)._socket
    (view,) = (one for one in management.targets() if one.name == site.exports["a"].target)
    site.targets._daemon(site.group)._set_state(view.id, "offline")
    site.serve()
    with site.connect("a") as lun:
        lun.write(0, b"1" * 512)
