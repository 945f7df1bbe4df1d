"""The director killed with SIGKILL at any line of its work: nothing stays held, nothing is lost.

No guest is told to thaw: its own lease does it. The next start clears what was left, or finishes what
was being copied, and backs up as if nothing had happened.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_site import (
    SHORT_BUDGET_SECONDS,
    SHORT_LEASE_SECONDS,
    VMS,
    At,
    SmallSite,
    assert_called,
    soak,
)

pytestmark = pytest.mark.needs_root

QUICK_KILLS = 4


class MortalDirector:
    """Backups in processes that can be killed at a line."""

    def __init__(self, settings: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_director.py")), settings, *VMS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def back_up(self, killed_at: str = "0") -> dict[str, Any]:
        """What became of it; `killed_director` explains orders and answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{killed_at}\n".encode())
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        """End."""
        self._process.communicate()


@pytest.fixture
def director(site: SmallSite) -> Iterator[MortalDirector]:
    director = MortalDirector(site.short_settings)
    yield director
    director.close()


def kill(site: SmallSite, director: MortalDirector, at: str) -> str:
    """Kill it there and see that all is well; the stage in which it was."""
    killed = director.back_up(at)
    site.longest_hold_seconds = SHORT_BUDGET_SECONDS + SHORT_LEASE_SECONDS
    if "where" not in killed:
        return "done"
    try:
        site.serve_again_by_their_lease()
        site.clean()
        # What came to copying is not cleared but finished.
        for resumed in site.resume():
            assert {point.vm for point in resumed.points} == set(VMS), resumed.said
        site.clean()
        site.assert_in_order()
    except AssertionError as error:
        error.add_note(f"killed at {at}: {killed['where']} in stage {killed['stage']}")
        raise
    return str(killed["stage"])


@pytest.mark.parametrize("stage", [soak("prepare"), soak("hold"), "snapshot", soak("proof")])
def test_a_director_that_is_interrupted(site: SmallSite, stage: str) -> None:
    """Ctrl-C and SIGTERM: it has the time to tell the guests, and to delete its snapshots."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        site.back_up(At(**{stage: interrupt}))
    assert all(guest.serves(1.0) for guest in site.guests.values())
    site.assert_in_order()


def test_a_director_killed_here_and_there(site: SmallSite, director: MortalDirector) -> None:
    """A few lines, spread over all that it runs: the whole of them is a soak."""
    lines = sum(director.back_up()["lines"].values())
    step = lines // QUICK_KILLS
    stages = Counter(kill(site, director, str(at)) for at in range(step // 2, lines, step))
    assert len(stages) > 2, "it was always killed in the same stage"
    assert_called(site.back_up())


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_a_director_killed_at_every_line(site: SmallSite, director: MortalDirector) -> None:
    """Each line of its code that a backup runs, at the first time and at the last."""
    lines = director.back_up()["lines"]
    orders = {f"{where} {time}" for where, times in lines.items() for time in (1, times)}
    stages: Counter[str] = Counter()
    for number, order in enumerate(sorted(orders)):
        stages[kill(site, director, order)] += 1
        if number % 20 == 0:
            assert_called(site.back_up())
    print(f"{len(lines)} lines, {len(orders)} kills: {dict(stages)}")
    assert {"plan", "prepare", "hold", "snapshot", "release", "proof"} <= stages.keys()
    assert_called(site.back_up())
