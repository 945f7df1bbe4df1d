"""Records of recoveries: whole or not there, found by name, locked by who works on them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError, UnknownPointError
from atoll.service.recoveries import Recoveries, Recovery

FIRST = Recovery(
    id="0000000a",
    name="db1-copy",
    source="repository",
    vm="db1",
    run="20260101-r1",
    point="p1",
    host="esx1",
    initiator="iqn.x:y",
    datastore="local",
    disks=2,
    port=22260,
    began_at=10.0,
    stage="begun",
)


def test_a_record_is_found_by_name_and_id_until_it_is_forgotten(tmp_path: Path) -> None:
    known = Recoveries(tmp_path / "recoveries")
    assert known.all() == []
    later = replace(FIRST, id="00000001", name="app1-copy", began_at=20.0)
    known.put(later)
    known.put(FIRST)
    assert known.all() == [FIRST, later]
    assert known.find("db1-copy") == known.find("0000000a") == FIRST
    known.put(replace(FIRST, stage="running"))
    assert known.find("db1-copy").stage == "running"
    (known.directory(FIRST.id) / "disks/1").mkdir(parents=True)
    (known.directory(FIRST.id) / "disks/1/data").write_bytes(b"x")
    for _ in range(2):
        known.forget(FIRST.id)
    assert known.all() == [later] and not known.directory(FIRST.id).exists()
    with pytest.raises(UnknownPointError, match="there are: app1-copy"):
        known.find("db1-copy")


def test_one_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    known = Recoveries(tmp_path)
    known.put(FIRST)
    (known.directory(FIRST.id) / "record.json").write_text(json.dumps({"id": 1}))
    with pytest.raises(ConfigurationError, match="see in vCenter"):
        known.all()


def test_who_works_on_one_and_who_serves_it_is_seen(tmp_path: Path) -> None:
    known = Recoveries(tmp_path)
    known.put(FIRST)
    assert not known.is_worked_on(FIRST.id) and not known.is_served(FIRST.id)
    with known.working(FIRST.id):
        assert Recoveries(tmp_path).is_worked_on(FIRST.id)
    assert not known.is_worked_on(FIRST.id)
