"""Products that cannot be had here, as fakes, held together with a file system that really freezes."""

import os
import signal
from pathlib import Path

import pytest
from module_guest import agent, disk

from vendor_benches import WITNESS, Bench, hana_bench, informix_bench, mssql_bench, soon

pytestmark = pytest.mark.needs_root


@pytest.fixture
def benches(tmp_path, monkeypatch) -> list[Bench]:
    made = []
    for make in (mssql_bench, informix_bench, hana_bench):
        place = tmp_path / make.__name__
        place.mkdir()
        made.append(make(place))
    monkeypatch.setenv(
        "PATH",
        os.pathsep.join([*(str(each.fake.directory / "bin") for each in made), os.environ["PATH"]]),
    )
    return made


@pytest.fixture
def mount(tmp_path):
    with disk(tmp_path / "disk.img", tmp_path / "disk", megabytes=64) as where:
        yield where


def entries(benches: list[Bench]) -> list[dict[str, str]]:
    """What an admin would write for them into agent.json."""
    mssql, informix, _ = benches
    return [
        {
            "kind": "mssql",
            "name": "sql",
            "address": "tcp:127.0.0.1,1433",
            "user": "atoll",
            "password_file": mssql.arguments["password_file"],
            "database": "orders",
            "witness": WITNESS,
        },
        {
            "kind": "informix",
            "name": "ol_it",
            "server": "ol_it",
            "home": str(informix.fake.directory),
            "owner": "root",
            "witness": WITNESS,
        },
        {"kind": "hana", "name": "HDB", "owner": "root", "witness": WITNESS},
    ]


def is_frozen(mount: Path) -> bool:
    """Whether a write to the file system waits."""
    child = os.fork()
    if child == 0:
        (mount / "probe").write_text("x")
        os._exit(0)
    waits = not soon(lambda: os.waitpid(child, os.WNOHANG) != (0, 0), seconds=1.0)
    if waits:
        os.kill(child, signal.SIGKILL)
        WAITING.append(child)
    return waits


WAITING: list[int] = []


@pytest.fixture(autouse=True)
def reaped():
    """Writers that waited end with the thaw."""
    yield
    while WAITING:
        os.waitpid(WAITING.pop(), 0)


def all_held(benches: list[Bench]) -> bool:
    return all(each.is_held() for each in benches)


def none_held(benches: list[Bench]) -> bool:
    return not any(each.is_held() for each in benches)


def test_all_are_held_with_the_file_system_and_let_go_with_it(benches, mount):
    with agent(entries(benches), [mount]) as running:
        running.prepare("a")
        held = running.freeze("a")
        assert [one["held"] for one in held["applications"]] == [True] * 3, held
        assert {one["witness"] for one in held["applications"]} == {"42"} | {
            one["witness"] for one in held["applications"] if one["kind"] == "informix"
        }
        assert all_held(benches)
        assert is_frozen(mount)
        released = running.thaw("a")
        assert released["held"], released
        assert none_held(benches)
        assert not is_frozen(mount)


def test_a_killed_agent_leaves_nothing_held(benches, mount):
    with agent(entries(benches), [mount]) as running:
        running.freeze("a")
        assert all_held(benches)
        running.kill()
        assert soon(lambda: none_held(benches))
        assert soon(lambda: not is_frozen(mount))


def test_an_agent_that_hangs_holds_no_longer_than_its_lease(benches, mount):
    with agent(entries(benches), [mount]) as running:
        running.freeze("a", lease=1.5)
        assert all_held(benches)
        running.process.send_signal(signal.SIGSTOP)
        assert soon(lambda: none_held(benches))
        running.process.send_signal(signal.SIGCONT)
        assert not running.thaw("a")["held"]


def test_one_that_hangs_costs_itself_and_not_the_file_system(benches, mount):
    mssql, _, _ = benches
    with agent(entries(benches), [mount]) as running:
        running.prepare("a")
        mssql.fake.set(hang=["= ON (MODE"])
        held = running.freeze("a", budget=6)
        states = {one["kind"]: one["held"] for one in held["applications"]}
        assert states == {"mssql": False, "informix": True, "hana": True}
        assert held["filesystems"] == [str(mount)]
        mssql.fake.set(hang=[])
        assert running.thaw("a")["held"]
        assert soon(lambda: none_held(benches))


def test_one_that_is_let_go_by_somebody_else_breaks_the_hold(benches, mount):
    _, informix, _ = benches
    with agent(entries(benches), [mount]) as running:
        running.freeze("a")
        informix.fake.set(blocked=False)
        released = running.thaw("a")
        assert not released["held"]
        assert "unblocked by somebody else" in released["reason"]
