"""A guest that is thawed after its lease was not held: every time, also a moment after it."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_site import SmallSite, more_guests

from atoll.guests.channel import AgentChannel

pytestmark = pytest.mark.needs_root

GUESTS, ROUNDS = 10, 10
LEASE_SECONDS = 1.0


def test_a_thaw_after_the_lease_never_says_held(site: SmallSite, tmp_path: Path) -> None:
    """A hundred tries; the guests' leases end at the same moments, as in a run."""

    def thaw_late(channel: AgentChannel, run: str) -> tuple[bool, str]:
        channel.prepare(run)
        channel.freeze(run, LEASE_SECONDS, 20.0)
        # The lease began before we heard of the freeze, so it is over after this.
        time.sleep(LEASE_SECONDS + random.choice((0.0, 0.0, 0.001, 0.01, 0.3)))
        thawed = channel.thaw(run)
        return thawed.held, thawed.reason

    with (
        more_guests(site, tmp_path, GUESTS) as channels,
        ThreadPoolExecutor(GUESTS) as pool,
    ):
        answers = [
            answer
            for number in range(ROUNDS)
            for answer in pool.map(
                thaw_late, channels, [f"late-{number}-{guest}" for guest in range(GUESTS)]
            )
        ]
    assert answers == [(False, "the lease of 1 s ended")] * 100
