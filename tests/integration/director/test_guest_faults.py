"""What goes wrong inside a guest: its clock, its disk, its applications."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from private_guest import await_that
from small_site import (
    SHORT,
    SHORT_LEASE_SECONDS,
    At,
    SmallSite,
    assert_called,
    assert_reasons,
    postgres_processes,
    proofs,
    signal_all,
    soak,
)

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("impatient")]

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
DAY = 86400.0


class WallClock:
    """The wall clock of an agent and all its processes, which can be set; other clocks are real."""

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset"
        self.interpreter = directory / "python"
        self.set(0)
        # The agent starts its watchdog as itself, with an environment that it has cleaned.
        self.interpreter.write_text(
            "#!/bin/bash\n"
            f"export LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE={self._offset}\n"
            "export FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n"
            f'exec -a "$0" {sys.executable} "$@"\n'
        )
        self.interpreter.chmod(0o755)

    def set(self, seconds: float) -> None:
        """Let it go wrong by so much."""
        self._offset.write_text(f"{seconds:+.0f}\n")


@pytest.fixture
def clock(site: SmallSite, tmp_path: Path) -> Iterator[WallClock]:
    """app1's agent and watchdog with a wall clock of their own."""
    clock = WallClock(tmp_path)
    agent = site.guests["app1"].agent
    before = set(Path("/dev/shm").glob("*faketime*"))
    agent.stop()
    interpreter, agent.argv[0] = agent.argv[0], str(clock.interpreter)
    agent.start()
    yield clock
    agent.stop()
    agent.argv[0] = interpreter
    agent.start()
    for left in set(Path("/dev/shm").glob("*faketime*")) - before:
        left.unlink()


@pytest.mark.parametrize("jump", [DAY, soak(-DAY)], ids=["forward", "back"])
def test_a_clock_that_jumps_in_the_hold_ends_no_lease(
    site: SmallSite, clock: WallClock, jump: float
) -> None:
    channel = site.guests["app1"].agent.channel
    result = site.hold_alone(At(snapshot=lambda: clock.set(jump)), accept_less=False)
    assert abs(channel.status().clock_offset_seconds - jump) < 60, "the clock did not jump"
    assert_called(result)
    assert_reasons(result, "app1")
    hold = proofs(result)["app1"].hold
    assert hold is not None
    assert abs(hold.thawed_at - hold.frozen_at - jump) < 60, "people see the jump in the times"


@pytest.mark.parametrize("jump", [soak(DAY), -DAY], ids=["forward", "back"])
def test_a_clock_that_jumps_does_not_put_off_the_end_of_a_lease(
    site: SmallSite, clock: WallClock, jump: float
) -> None:
    channel = site.guests["app1"].agent.channel
    channel.freeze("jump", 1.0, 20.0)
    watchdog = Path(f"/proc/{site.guests['app1'].agent.watchdog()}/maps")
    assert FAKETIME.name in watchdog.read_text(), "the watchdog has another clock"
    clock.set(jump)
    await_that(lambda: channel.status().state == "idle", "the lease ends")
    assert channel.thaw("jump").reason == "the lease of 1 s ended"


@contextmanager
def full(mount: Path) -> Iterator[None]:
    """Not a block is free, not even for root."""
    filler = mount / "filler"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], capture_output=True, check=False
    )
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={filler}", "bs=512", "oflag=append", "conv=notrunc"],
        capture_output=True,
        check=False,
    )
    try:
        with pytest.raises(OSError, match="No space left"):
            (mount / "one-more").write_bytes(b"x" * 65536)
        yield
    finally:
        filler.unlink()
        (mount / "one-more").unlink(missing_ok=True)


def test_a_full_disk_with_the_agent_on_it(site: SmallSite) -> None:
    """It writes nothing to hold or to let go, and starts again on it, too."""
    guest = site.guests["web1"]
    assert guest.config.is_relative_to(guest.mount)
    with full(guest.mount):
        result = site.hold_alone(At(), accept_less=False)
        assert_called(result)
        assert_reasons(result, "web1")
        guest.agent.stop()
        guest.agent.start()
        killed = site.hold_alone(At(snapshot=guest.agent.process.kill))
        assert_called(killed, web1="crash")
        assert guest.serves(SHORT_LEASE_SECONDS)
        guest.agent.process.wait()
        guest.agent.start()


def test_an_application_that_refuses(site: SmallSite) -> None:
    """The file systems are held all the same, and the point names who is in the way."""
    database = site.database
    assert database is not None
    with subprocess.Popen(
        [
            *("psql", "-X", "-q", "-h", str(database.base / "pgsock")),
            *("-p", str(database.pg_port), "postgres"),
        ],
        stdin=subprocess.PIPE,
        user="postgres",
        group="postgres",
        extra_groups=[],
        env={**os.environ, "PGAPPNAME": "forgetful"},
        cwd="/",
    ) as writer:
        assert writer.stdin is not None
        writer.stdin.write(b"BEGIN; INSERT INTO ledger (note) VALUES ('half');\n")
        writer.stdin.flush()
        await_that(
            lambda: (
                database.psql(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
                )
                != "0"
            ),
            "the transaction is open",
        )
        result = site.hold_alone(At(), accept_less=False)
        assert_called(result, db1="filesystem")
        assert_reasons(result, "db1", "postgresql main was not held: .*forgetful.*")
        # Its freeze takes long now: asked again while it is under way, it answers once for both.
        wire = site.guests["db1"].wire
        result = site.hold_alone(
            At(
                hold=lambda: wire.before_the_next_request(
                    lambda: threading.Timer(0.3, wire.reset).start()
                )
            ),
            accept_less=False,
            **SHORT,
        )
        assert_called(result, db1="filesystem")
        writer.stdin.close()


def test_an_application_that_hangs_while_it_is_to_be_held(site: SmallSite) -> None:
    """It has its share of the budget, and no more."""
    database = site.database
    assert database is not None
    postmaster = int((database.base / "postmaster.pid").read_text())
    try:
        result = site.hold_alone(
            At(hold=lambda: signal_all(postgres_processes(postmaster), signal.SIGSTOP)),
            **SHORT,
        )
        assert_called(result, db1="filesystem")
        assert_reasons(
            result, "db1", "postgresql main was not held: The server did not answer in time."
        )
    finally:
        signal_all(postgres_processes(postmaster), signal.SIGCONT)
    database.psql("INSERT INTO ledger (note) VALUES ('after')")
