"""Which packs a verify reads next: a share a day, and where it was cut short."""

from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError
from atoll.repository.checked import CheckLog


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def log(tmp_path: Path) -> CheckLog:
    return CheckLog(tmp_path / "state" / "checked", Clock())


SIZES = {f"pack{number:02}": 10 + number for number in range(20)}


def test_a_share_a_day_reads_everything_in_so_many_days(log: CheckLog) -> None:
    read: list[str] = []
    for _ in range(7):
        share = log.share(SIZES, 7)
        assert sum(SIZES[pack] for pack in share) <= sum(SIZES.values()) // 7 + 30
        for pack in share:
            log.note(pack, whole=True)
        read += share
    assert set(read) == SIZES.keys()
    assert log.oldest(SIZES) is not None


def test_the_longest_unread_comes_first_and_damage_before_it(log: CheckLog) -> None:
    for pack in SIZES:
        log.note(pack, whole=True)
    log.note("pack07", whole=False)
    assert log.share(SIZES, 10)[:2] == ["pack07", "pack00"]
    assert log.oldest(SIZES) is None
    assert log.share({**SIZES, "new": 1}, 1000) == ["new"]


def test_one_that_was_cut_short_goes_on(log: CheckLog) -> None:
    for pack in SIZES:
        log.note(pack, whole=True)
    assert log.begin(SIZES) == sorted(SIZES), "what was read before does not count"
    for pack in sorted(SIZES)[:5]:
        log.note(pack, whole=True)
    for pack in sorted(SIZES)[5:]:
        assert pack in log.begin(SIZES, resume=True)
        log.note(pack, whole=True)
    assert log.begin(SIZES, resume=True) == []
    log.end({"pack01": 1})
    assert log.begin(SIZES, resume=True) == sorted(SIZES), "none was cut short"
    assert log.oldest({"pack01": 1}) is not None
    assert log.oldest({"pack02": 1}) is None, "what is gone is forgotten"


def test_a_file_that_is_no_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "checked").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigurationError, match="starts from the beginning"):
        CheckLog(tmp_path / "checked")
