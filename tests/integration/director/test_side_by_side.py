"""Runs at work at once: each gets what it would get alone, and none touches what is another's."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_site import HELD, VMS, At, SmallSite, assert_called

from atoll.service.backup import BackupResult

pytestmark = pytest.mark.needs_root

JOBS = (("db1", "web1"), ("app1",), ("web1",), ("db1", "app1"))
"""Of the same LUN groups, and of the same guests."""


def back_up_at_once(site: SmallSite, jobs: tuple[tuple[str, ...], ...]) -> list[BackupResult]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda vms: site.back_up(vms=vms), jobs))


def full_reads(result: BackupResult) -> list[str]:
    return [point.vm for point in result.points if not point.incremental]


def test_all_get_what_they_would_get_alone(site: SmallSite) -> None:
    site.back_up(vms=HELD)
    results = back_up_at_once(site, JOBS)
    for result, vms in zip(results, JOBS, strict=True):
        assert {point.vm for point in result.points} == set(vms)
        assert_called(result)
        # What one run could not delete because another read it, whoever tidies next does.
        assert not [line for line in result.cleaned if "no restore point needs" not in line]
    site.clean()
    site.assert_in_order()
    # None deleted what another's next increment is measured from.
    assert full_reads(site.back_up(vms=HELD)) == []


def test_who_tidies_leaves_a_run_at_work_alone(site: SmallSite) -> None:
    tidied: list[list[str]] = []
    tidying: list[threading.Thread] = []

    def tidy() -> None:
        tidying.append(threading.Thread(target=lambda: tidied.append(site.clean())))
        tidying[-1].start()

    def tidy_to_the_end() -> None:
        tidied.append(site.clean())

    site.back_up()
    # In the hold, VMware snapshots in place, and again before anything is committed.
    result = site.back_up(At(snapshot=tidy, copy=tidy_to_the_end, commit=tidy_to_the_end))
    for each in tidying:
        each.join()
    assert tidied == [[], [], []]
    assert_called(result)
    assert full_reads(result) == []
    assert full_reads(site.back_up()) == []


def test_the_parent_of_a_slow_run_is_there_to_its_end(site: SmallSite) -> None:
    site.back_up(vms=("db1",))
    result = site.back_up(At(copy=lambda: site.back_up(vms=("db1",))), vms=("db1",))
    assert full_reads(result) == []
    site.clean()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
def test_many_at_once(site: SmallSite, seed: int) -> None:
    chance = random.Random(seed)
    jobs = tuple(tuple(chance.sample(VMS, chance.randint(1, len(VMS)))) for _ in range(6))
    for result, vms in zip(back_up_at_once(site, jobs), jobs, strict=True):
        assert {point.vm for point in result.points} == set(vms)
        assert_called(result)
    site.clean()
    site.assert_in_order()
