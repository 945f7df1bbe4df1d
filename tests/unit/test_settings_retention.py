"""The settings' section [retention]."""

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from atoll.model.errors import ConfigurationError
from atoll.model.retention import Keep, Retention
from atoll.settings import load_settings

STORAGE = '[[storage]]\nname = "san1"\ndriver = "embedded"\nroot = "pool"\n'


def retention(tmp_path: Path, text: str) -> Retention:
    path = tmp_path / "atoll.toml"
    path.write_text(STORAGE + text)
    return load_settings(path).retention.retention()


@pytest.mark.parametrize("text", ["", "[retention]\n"])
def test_without_rules_everything_stays(tmp_path: Path, text: str) -> None:
    assert retention(tmp_path, text).of("db1").everything


def test_all_rules_and_their_exceptions(tmp_path: Path) -> None:
    found = retention(
        tmp_path,
        """
        [retention]
        time_zone = "Europe/Berlin"
        keep_last = 1
        keep_hourly = 2
        keep_daily = 3
        keep_weekly = 4
        keep_monthly = 5
        keep_yearly = 6
        keep_within = "2w"
        [[retention.rules]]
        vms = ["db*", "app1"]
        keep_within = "36h"
        [[retention.rules]]
        vms = ["legal*"]
        keep_all = true
        """,
    )
    assert found.of("web1") == Keep(1, 2, 3, 4, 5, 6, 14 * 86400.0)
    assert found.of("DB7") == found.of("app1") == Keep(within_seconds=36 * 3600.0)
    assert found.of("legal1").everything
    assert found.zone == ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[retention]\nkeep_daily = 0\n", "keep_daily"),
        ("[retention]\nkeep_dayly = 1\n", "keep_dayly"),
        ('[retention]\nkeep_within = "14"\n', "36h, 14d or 8w"),
        ('[retention]\nkeep_within = "0d"\n', "36h, 14d or 8w"),
        ('[retention]\ntime_zone = "Berlin"\n', "no time zone"),
        ('[retention]\ntime_zone = "../passwd"\n', "no time zone"),
        ('[[retention.rules]]\nvms = ["x"]\n', "keep_all = true, or"),
        (
            '[[retention.rules]]\nvms = ["x"]\nkeep_all = true\nkeep_last = 1\n',
            "keep_all = true, or",
        ),
        ("[[retention.rules]]\nvms = []\nkeep_all = true\n", "vms"),
    ],
)
def test_what_could_let_too_much_go_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        retention(tmp_path, text)
