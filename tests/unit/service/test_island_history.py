"""What a refresh did to each placeholder, kept in a file that is only added to."""

from pathlib import Path

from atoll.service.island_history import Event, IslandHistory, events
from atoll.vsphere.placeholder_specs import Placeholder


def shown(
    vm: str, name: str, run: str, disks: int = 1, moref: str = "vm-1", folder: str = "group-v1"
) -> Placeholder:
    paths = {2000 + number: f"[ds-{run}] {number}.vmdk" for number in range(disks)}
    return Placeholder(moref, name, vm, run, paths, in_use=False, folder=folder)


def told(before: list[Placeholder], after: list[Placeholder]) -> list[tuple[str, str, str, str]]:
    return [(event.what, event.name, event.run, event.was) for event in events(before, after)]


def test_each_change_is_called_by_what_it_is() -> None:
    before = [shown("u1", "db1", "r1"), shown("u2", "app1", "r1"), shown("u3", "web1", "r1", 2)]
    after = [shown("u1", "db1", "r2"), shown("u3", "web1", "r2", 3), shown("u4", "new1", "r2")]
    assert told(before, after) == [
        ("shown", "db1", "r2", ""),
        ("removed", "app1", "r1", ""),
        ("changed", "web1", "r2", ""),
        ("made", "new1", "r2", ""),
    ]
    assert told(before, before) == []
    assert told([shown("u1", "db1", "r1")], [shown("u1", "db1-new", "r2")]) == [
        ("renamed", "db1-new", "r2", "db1")
    ]
    assert told([shown("u1", "db1", "r1")], [shown("u1", "db1", "r2", folder="group-v2")]) == [
        ("moved", "db1", "r2", "")
    ]
    assert told([shown("u1", "db1", "r1")], [shown("u1", "db1", "", 0)]) == [
        ("emptied", "db1", "r1", "")
    ]


def test_it_is_kept_and_a_cut_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "island.jsonl"
    history = IslandHistory(path)
    assert history.read() == []
    first = Event(1.0, "made", "u1", "dü", "vm-1", "r1")
    history.add([first])
    path.write_bytes(path.read_bytes() + b'{"at": 2.0, "wh')
    second = Event(3.0, "removed", "u1", "dü", "vm-1", "r1")
    IslandHistory(path).add([second])
    history.add([])
    assert history.read() == [first, second]
    assert path.stat().st_mode & 0o777 == 0o600
