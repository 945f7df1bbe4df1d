"""One small site for all, in order after each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_site import SmallSite, small_site

from atoll.director import capture, vmware_hold
from atoll.guests import channel, connection


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallSite]:
    """The site, once for all tests."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    base: Path = tmp_path_factory.mktemp("site")
    let_in(base)
    with small_site(base) as site:
        yield site


def let_in(base: Path) -> None:
    """Let PostgreSQL's own user get to its files: another pytest that starts closes the way."""
    for each in (base, *list(base.parents)[:2]):
        # Never less than was allowed: with another base directory one of them may be /tmp itself.
        each.chmod(each.stat().st_mode | 0o055)


@pytest.fixture
def site(standing: SmallSite) -> Iterator[SmallSite]:
    """The site; afterwards its guests serve by their lease and nothing of the test is left."""
    let_in(standing.directory)
    yield standing
    standing.serve_again_by_their_lease()
    standing.mend()
    standing.assert_in_order()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A director that waits less long for who is silent; nothing else is different."""
    monkeypatch.setattr(capture, "_RELEASE_SECONDS", 3.0)
    monkeypatch.setattr(capture, "_AWAY_SECONDS", 3.0)
    monkeypatch.setattr(vmware_hold, "_LAST_RELEASE_SECONDS", 3.0)
    monkeypatch.setattr(channel, "_PREPARE_SECONDS", 5.0)
    monkeypatch.setattr(channel, "_KEPT_THAW_SECONDS", 3.0)
    monkeypatch.setattr(channel, "_THAW_SECONDS", 3.0)
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 3.0)
