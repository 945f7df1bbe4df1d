"""Restore points as JSON: there and back, and across versions."""

import json
from typing import Any

import pytest

from atoll.model.points import Evidence, RestorePoint
from atoll.repository.copying import CopiedDisk
from atoll.repository.records import from_json, to_json
from repository_parts import image, point

COPIED = CopiedDisk("ab" * 32, 1 << 40, 5, 4, 3, 2, 1)


def _document() -> Any:
    return json.loads(json.dumps(to_json(point("p1", image(COPIED)))))


def test_a_point_comes_back_equal() -> None:
    assert from_json(RestorePoint, _document()) == point("p1", image(COPIED))


def test_evidence_keeps_the_types_of_its_facts() -> None:
    evidence = Evidence(1.0, True, 2.0, "up", {"a": 1, "b": 1.0, "c": True, "d": None, "e": "x"})
    back = from_json(Evidence, json.loads(json.dumps(to_json(evidence))))
    assert back == evidence
    assert [type(value) for value in back.facts.values()] == [int, float, bool, type(None), str]


def test_fields_of_a_later_version_are_passed_over() -> None:
    document = _document()
    document["colour"] = "blue"
    document["proof"]["hold"]["moon"] = {"phase": 3}
    assert from_json(RestorePoint, document) == point("p1", image(COPIED))


def test_an_absent_field_takes_its_default_or_is_an_error() -> None:
    document = _document()
    del document["proof"]["hold"]["applications"][0]["detail"]
    assert from_json(RestorePoint, document) == point("p1", image(COPIED))
    del document["vm"]
    with pytest.raises(ValueError, match="vm"):
        from_json(RestorePoint, document)


@pytest.mark.parametrize(("field", "value"), [("id", 5), ("disks", {}), ("incremental", "yes")])
def test_a_value_of_another_type_is_an_error(field: str, value: object) -> None:
    with pytest.raises(ValueError, match="is no"):
        from_json(RestorePoint, _document() | {field: value})
