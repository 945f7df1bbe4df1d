"""The agent's configuration is read strictly."""

import json

import pytest

from atoll_agent.config import load_config
from atoll_agent.errors import ConfigError

GOOD = {
    "name": "db1",
    "instance_uuid": "u",
    "certificate": "agent.crt",
    "key": "agent.key",
    "authority": "/elsewhere/ca.crt",
}


def write(tmp_path, **changes):
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    return path


def test_defaults_and_relative_paths(tmp_path):
    config = load_config(write(tmp_path))
    assert (config.port, config.discover, config.freeze_only) == (8443, True, None)
    assert config.key == tmp_path / "agent.key"
    assert str(config.authority) == "/elsewhere/ca.crt"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, "name"),
        ({"port": 70000}, "port"),
        ({"port": True}, "port"),
        ({"surprise": 1}, "keys among"),
        ({"applications": {}}, "list"),
        ({"applications": [{"kind": "dbase", "name": "x"}]}, "dbase"),
        ({"applications": [{"kind": "mariadb", "name": "x", "witness": "\\! id"}]}, "backslash"),
        ({"applications": [{"kind": "mariadb", "name": "x", "witness": "a; b"}]}, "statement"),
        ({"freeze_only": [1]}, "mount points"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, **changes))


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="enrol this guest"):
        load_config(tmp_path / "none.json")
