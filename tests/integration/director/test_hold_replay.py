"""The model of the hold protocol and the real thing do the same, step by step, in runs at random."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from private_guest import mounted, run

from hold_replay import Replay, Site
from spin_model import simulate

pytestmark = pytest.mark.needs_root

OPTIONS = ("REPLAY", "FAULTS=2", "LATE=1", "KINDS=63")
# Of so many runs the quick test takes those that differ most.
RUNS, CHOSEN = 90, 24
LONG_RUNS = 300


@pytest.fixture(scope="module")
def replay_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base: Path = tmp_path_factory.mktemp("replay")
    image = base / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", "-F", image)
    with mounted(image, base / "disk") as mount:
        site = Site(base, mount)
        try:
            yield site
        finally:
            site.close()


@pytest.fixture(scope="module")
def runs() -> list[list[str]]:
    """Runs of the model, each the one that adds most to what those before show."""
    left = [simulate(OPTIONS, seed) for seed in range(RUNS)]
    chosen: list[list[str]] = []
    shown: set[tuple[str, str]] = set()
    while len(chosen) < CHOSEN:
        best = max(left, key=lambda lines: len(set(pairwise(lines)) - shown))
        left.remove(best)
        chosen.append(best)
        shown |= set(pairwise(best))
    return chosen


@pytest.mark.parametrize("number", range(CHOSEN))
def test_a_run_of_the_model_is_one_of_the_real_thing(replay_site, runs, number):
    Replay(replay_site, f"run{number}").run(runs[number])


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(RUNS, RUNS + LONG_RUNS))
def test_many_runs_of_the_model_are_of_the_real_thing(replay_site, seed):
    Replay(replay_site, f"seed{seed}").run(simulate(OPTIONS, seed))
