"""Every line of the registry leads to a module, and both agree on what its servers are called."""

import pytest

from atoll_agent.config import load_config
from atoll_agent.errors import ConfigError
from atoll_agent.modules import MODULES, find_module, load_module


@pytest.mark.parametrize("line", MODULES, ids=lambda line: line.kind)
def test_a_line_leads_to_a_module(line):
    module = load_module(line.kind)
    assert find_module(line.kind) is line
    assert module.discover((), False) == [] or not line.processes
    assert getattr(module, "PROCESSES", line.processes) == line.processes


def test_kinds_are_named_once():
    assert len({line.kind for line in MODULES}) == len(MODULES)


def test_an_entry_takes_the_keys_of_its_line_and_no_others(tmp_path):
    config = tmp_path / "agent.json"
    text = (
        '{{"name": "a", "instance_uuid": "u", "certificate": "c", "key": "k", "authority": "a",'
        ' "applications": [{{"kind": "hana", "name": "HDB", {0}}}]}}'
    )
    config.write_text(text.format('"key": "ATOLL", "witness": "SELECT 1 FROM DUMMY"'))
    [entry] = load_config(config).applications
    assert entry.text("key") == "ATOLL"
    config.write_text(text.format('"password": "no"'))
    with pytest.raises(ConfigError, match="keys of hana"):
        load_config(config)
