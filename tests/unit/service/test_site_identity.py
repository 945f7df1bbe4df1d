"""What marks a site's own snapshots: the same for ever."""

from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError
from atoll.service.identity import site_identity


def test_with_a_repository_it_is_the_beginning_of_its_key_id(tmp_path: Path) -> None:
    assert site_identity(tmp_path, lambda: "0123456789abcdef") == "01234567"
    assert not list(tmp_path.iterdir())


def test_without_one_it_is_made_up_once_and_stays(tmp_path: Path) -> None:
    made = site_identity(tmp_path / "state", None)
    assert len(made) == 8
    assert site_identity(tmp_path / "state", None) == made
    assert site_identity(tmp_path / "state", lambda: "0123456789abcdef") == made
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["site"]
    assert site_identity(tmp_path / "other", None) != made


@pytest.mark.parametrize("text", ["", "0123", "0123456z\n", "01234567\n89abcdef\n"])
def test_a_damaged_one_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "site").write_text(text)
    with pytest.raises(ConfigurationError, match="eight hex digits"):
        site_identity(tmp_path, None)
    assert (tmp_path / "site").read_text() == text


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be kept"):
        site_identity(tmp_path / "file" / "state", None)
