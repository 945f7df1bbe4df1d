"""Records of restores into vSphere: whose process lives, and whose died."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError
from atoll.service.restores import Restore, Restores


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_restore_that_is_closed_leaves_nothing(tmp_path: Path) -> None:
    restores = Restores(tmp_path / "restores")
    with restores.begun("db1") as restore:
        restore.settling("vm-1", "bios", "instance")
        written = json.loads((tmp_path / "restores" / f"{restore.record.id}.json").read_text())
        assert written == asdict(restore.record)
        assert (restore.record.stage, restore.record.replaces) == ("settling", "vm-1")
        with restores.dead() as dead:
            assert dead == [], "its process lives"
        restore.close()
    assert names(tmp_path / "restores") == []
    with restores.dead() as dead:
        assert dead == []


def test_what_was_not_closed_is_found_by_one_at_a_time(tmp_path: Path) -> None:
    restores = Restores(tmp_path)
    with restores.begun("db1"):
        pass
    with restores.dead() as dead, restores.dead() as others:
        (found,) = dead
        assert found.record.name == "db1"
        assert others == []
    with restores.dead() as dead:
        dead[0].close()
    assert names(tmp_path) == []


def test_records_of_versions_to_come_and_torn_ones_are_not_guessed_at(tmp_path: Path) -> None:
    for text in ("{", json.dumps({**asdict(Restore("1" * 8, "db1", "importing")), "more": 1})):
        (tmp_path / "11111111.json").write_text(text)
        with (
            pytest.raises(ConfigurationError, match=r"remove the file"),
            Restores(tmp_path).dead(),
        ):
            pass
    os.rename(tmp_path / "11111111.json", tmp_path / "another.json")
    with Restores(tmp_path).dead() as dead:
        assert dead == []


def test_nothing_begins_that_cannot_be_recorded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match="nothing more was done"),
        Restores(tmp_path / "file").begun("db1"),
    ):
        pass
