"""The user-space initiator against a real target: transfers, lost sessions, refusals."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from atoll.model.extents import Extent
from atoll.storage.initiator import (
    InitiatorRefusedError,
    IscsiError,
    IscsiLun,
    ScsiCommandError,
    Target,
    TargetUnreachableError,
    discover,
    lun_numbers,
)
from tcp_relay import TcpRelay
from tgt_site import HOST, MIB, OTHER, TgtSite, tgt_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TgtSite]:
    with tgt_site(tmp_path) as one:
        one.add("a", 16 * MIB)
        one.serve()
        yield one


def kill_daemon(site: TgtSite) -> None:
    process = site.targets.process(site.group)
    assert process is not None
    with process:
        process.signal(signal.SIGKILL)
        assert process.ended(60)


def test_transfers_of_any_length_are_exact(site: TgtSite) -> None:
    data = Random(1).randbytes(5 * MIB + 512)
    with site.connect("a") as lun:
        lun.write(512, data)
        lun.flush()
        assert lun.read(0, len(data) + 1024) == bytes(512) + data + bytes(512)
        assert lun.read_each([Extent(512, 512), Extent(MIB, 0), Extent(4 * MIB, MIB)]) == [
            data[:512], b"", data[4 * MIB - 512 : 5 * MIB - 512],
        ]  # fmt: skip
        lun.unmap(MIB, 2 * MIB)
        assert not any(lun.read(MIB, 2 * MIB))
        for call in (lambda: lun.read(1, 512), lambda: lun.write(0, b"x"), lambda: lun.unmap(0, 1)):
            with pytest.raises(IscsiError, match="align"):
                call()
        with pytest.raises(ScsiCommandError) as refused:
            lun.read(16 * MIB, 512)
        assert refused.value.sense == (5, 0x2100)
    with pytest.raises(IscsiError, match="closed"):
        lun.read(0, 512)


def test_what_a_portal_shows(site: TgtSite) -> None:
    site.add("b", initiators=(HOST, OTHER))
    site.serve()
    (portal,) = site.portals("a")
    names = [site.exports[name].target for name in ("a", "b")]
    assert discover(portal, HOST) == [Target(name, (portal,)) for name in names]
    assert discover(portal, OTHER) == [Target(names[1], (portal,))]
    assert lun_numbers(portal, names[0], HOST) == [0, 1]
    with pytest.raises(InitiatorRefusedError):
        lun_numbers(portal, names[0], OTHER)
    with pytest.raises(InitiatorRefusedError):
        IscsiLun(portal, names[0], 5, HOST)
    with pytest.raises(InitiatorRefusedError):
        IscsiLun(portal, names[0] + "x", 1, HOST)


def test_a_lost_session_is_made_again_and_the_command_repeated(site: TgtSite) -> None:
    with site.connect("a") as lun:
        lun.write(0, b"1" * 512)
        kill_daemon(site)
        serving = threading.Timer(0.5, site.serve)
        serving.start()
        lun.write(512, b"2" * 512)
        serving.join()
        assert lun.read(0, 1024) == b"1" * 512 + b"2" * 512


def test_without_reconnecting_a_lost_session_stays_lost(site: TgtSite) -> None:
    lun = site.connect("a", reconnect=False)
    kill_daemon(site)
    site.serve()
    for _ in range(2):
        with pytest.raises(TargetUnreachableError):
            lun.read(0, 512)
    lun.close()


def test_closing_ends_the_wait_for_a_target_that_is_gone(site: TgtSite) -> None:
    lun = site.connect("a")
    kill_daemon(site)
    failures: list[IscsiError] = []

    def read() -> None:
        try:
            lun.read(0, 512)
        except IscsiError as error:
            failures.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    lun.close()
    reading.join(60)
    assert not reading.is_alive()
    assert len(failures) == 1


def test_a_target_that_falls_silent_is_given_up(site: TgtSite) -> None:
    (portal,) = site.targets.portals(site.group, site.exports["a"])
    with TcpRelay(portal) as relay:
        lun = IscsiLun(
            f"127.0.0.1:{relay.portal.port}", portal.target, 1, HOST, timeout_seconds=1,
            reconnect=False,
        )  # fmt: skip
        relay.silence()
        with pytest.raises(TargetUnreachableError, match="timed out"):
            lun.read(0, 512)
        lun.close()


def test_signals_disturb_no_command(site: TgtSite) -> None:
    """libiscsi's own waiting gives up at a signal and leaves its command under way."""
    told: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: told.append(number))
    ending = threading.Event()

    def disturb() -> None:
        while not ending.wait(0.001):
            os.kill(os.getpid(), signal.SIGUSR1)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        with site.connect("a", reconnect=False) as lun:
            data = Random(2).randbytes(MIB)
            for round_number in range(30):
                lun.write(round_number % 16 * MIB, data)
                assert lun.read(round_number % 16 * MIB, MIB) == data
    finally:
        ending.set()
        disturbing.join()
        signal.signal(signal.SIGUSR1, before)
    assert told
