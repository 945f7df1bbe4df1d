"""Which modules are asked for their servers at all."""

from collections import Counter
from types import SimpleNamespace

import pytest

from atoll_agent import applications
from atoll_agent.application import ApplicationConfig
from atoll_agent.modules import Module


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The kinds that were loaded. One is known by its process, one by a directory."""
    asked = []
    modules = (
        Module("database", ("databased",), ()),
        Module("hooks", (), (), directory=str(tmp_path / "hooks.d")),
    )

    def load(kind):
        asked.append(kind)
        return SimpleNamespace(discover=lambda configured, look: [f"{kind} {look}"])

    monkeypatch.setattr(applications, "MODULES", modules)
    monkeypatch.setattr(applications, "load_module", load)
    return asked


def known(running, *configured, discover=True):
    config = SimpleNamespace(applications=configured, discover=discover)
    return applications._known(config, Counter(running))


def test_nothing_that_is_not_there_is_loaded(asked):
    assert known([]) == []
    assert asked == []


def test_what_runs_what_lies_there_and_what_is_named(asked, tmp_path):
    assert known(["database"]) == ["database True"]
    (tmp_path / "hooks.d").mkdir()
    assert known([]) == ["hooks True"]
    assert known(["database"], discover=False) == []
    entry = ApplicationConfig("hooks", "x", {})
    assert known(["database"], entry, discover=False) == ["hooks False"]
