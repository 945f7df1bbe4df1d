"""Servers nobody told the agent about are counted, by kind, and reported as not held."""

from types import SimpleNamespace

import pytest

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.strangers import count_servers, find_strangers

POSTGRESQL, MARIADB = SimpleNamespace(kind="postgresql"), SimpleNamespace(kind="mariadb")


@pytest.fixture
def proc(tmp_path):
    """Two clusters, of which one has helpers, a MariaDB, and programs that are neither."""
    (tmp_path / "self").mkdir()
    for pid, name, parent in [
        (1, "init", 0),
        (10, "postgres", 1),
        (11, "postgres", 10),
        (12, "postgres", 10),
        (20, "postgres", 1),
        (30, "mariadbd", 1),
        (40, "a ) (postgres", 1),
    ]:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0\n")
    (tmp_path / "50").mkdir()  # ended before it was looked at
    return tmp_path


def test_nothing_is_strange_when_all_are_known(proc):
    assert find_strangers([POSTGRESQL, POSTGRESQL, MARIADB], count_servers(proc)) == []


def test_what_is_not_known_is_said_and_never_held(proc):
    (stranger,) = find_strangers([POSTGRESQL, MARIADB], count_servers(proc))
    with pytest.raises(ApplicationError, match=r"2 servers run .* knows 1"):
        stranger.open(Deadline(1))
    assert not stranger.hold(Deadline(1)).held
    assert {each.kind for each in find_strangers([], count_servers(proc))} == {
        "postgresql",
        "mariadb",
    }
