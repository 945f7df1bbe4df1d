"""What the backend asks of a driver, and what it remembers: a driver that only writes down."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.backend import Export, Place, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.cinder.array_path import ArrayPath
from atoll.storage.drivers.cinder.backend import CinderBackend
from atoll.storage.drivers.cinder.remembered import GIB, Remembered, Volume, snapshot_of
from atoll.storage.drivers.cinder.settings import Settings

GROUP, OTHER, VOLUME, SECOND, SNAPSHOT = (digit * 32 for digit in "abcde")
ESX1, ESX2 = "iqn.1998-01.com.vmware:esx1", "iqn.1998-01.com.vmware:esx2"
FACTS = {"vendor": "V", "protocol": "iSCSI", "group_snapshots": False, "revert": True}


class Notes:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def note(self, key: str) -> str | None:
        return self.kept.get(key)

    def notes(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    def put_note(self, key: str, value: str | None) -> None:
        if value is None:
            self.kept.pop(key, None)
        else:
            self.kept[key] = value


class Driver:
    """In a sidecar's place. `failing` are calls that end in an error."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.calls: list[str] = []
        self.failing: set[str] = set()

    def call(self, name: str, **arguments: Any) -> Any:
        self.calls.append(name)
        if name in self.failing:
            raise StorageUnreachableError(f"{name} failed")
        if name == "facts":
            return self.facts
        if name in ("take_snapshots", "take_group_snapshot"):
            models = [{"provider_id": told["id"][:4]} for told, _ in arguments["pairs"]]
            return {"models": models, "started_at": 1.0, "finished_at": 2.0}
        if name == "copy":
            return [{} for _ in arguments["parts"]]
        if name == "connect":
            data = {"target_portal": "10.0.0.1:3260", "target_iqn": "iqn.x:a", "target_lun": 1}
            return {"model": {"provider_id": "connected"}, "kind": "iscsi", "data": data}
        return {"provider_id": name}


class Site:
    def __init__(self, directory: Path, facts: Mapping[str, Any] = FACTS) -> None:
        self.notes, self.driver = Notes(), Driver(facts)
        self.remembered = Remembered(self.notes)
        place = Place(directory / "run", self.notes, "0123456789ab")
        settings = Settings(volume_driver="cinder.volume.drivers.pure.PureISCSIDriver")
        self.path = _Unasked(
            settings,
            place,
            self.remembered,
            self.driver,
            directory / "chap.txt",  # type: ignore[arg-type]
        )
        self.backend = CinderBackend(
            settings.volume_driver,
            self.remembered,
            self.driver,
            self.path,
            served_here=False,  # type: ignore[arg-type]
        )

    def with_volumes(self, *volumes: str) -> "Site":
        self.backend.create_group(GROUP)
        for volume in volumes:
            self.backend.create_volume(GROUP, volume, GIB, "g/a")
        self.driver.calls.clear()
        return self


class _Unasked(ArrayPath):
    """Volumes say who they are without being asked over iSCSI."""

    def identify(self, volume: Volume) -> VolumeIdentity:
        return VolumeIdentity(f"naa.{volume.id}", volume.id, "V", "P")

    def measure(self, volume: Volume) -> int:
        return self.measured

    measured = GIB


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def grouped(tmp_path: Path) -> Site:
    return Site(tmp_path, {**FACTS, "group_snapshots": True})


def export(*initiators: str) -> Export:
    identity = VolumeIdentity("naa.6", "s", "V", "P")
    return Export(VOLUME, "iqn.t", identity, GIB, initiators, {}, read_only=False)


def test_what_a_driver_says_of_itself_is_asked_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.backend.capabilities.revert
    again = CinderBackend(
        "cinder.volume.drivers.pure.PureISCSIDriver",
        site.remembered,
        site.driver,  # type: ignore[arg-type]
        site.path,
        served_here=False,
    )
    assert again.capabilities == site.backend.capabilities
    assert site.driver.calls == ["facts"]


def test_a_volume_is_noted_before_it_is_made(site: Site) -> None:
    site.driver.failing = {"create_volume"}
    with pytest.raises(StorageUnreachableError):
        site.backend.create_volume(GROUP, VOLUME, GIB, "g/a")
    assert site.backend.volumes() == {VOLUME: GIB}
    site.driver.failing.clear()
    site.driver.calls.clear()
    site.backend.create_volume(GROUP, VOLUME, GIB, "g/a")
    assert site.driver.calls == ["delete_volume", "create_volume"]
    site.driver.calls.clear()
    site.backend.create_volume(GROUP, VOLUME, GIB, "g/a")
    assert site.driver.calls == []


def test_what_a_driver_wants_kept_comes_back_to_it(site: Site) -> None:
    site.with_volumes(VOLUME)
    kept = site.remembered.volume(VOLUME)
    assert kept is not None
    assert kept.told()["model"] == {"provider_id": "create_volume"}


def test_deleting_what_is_unknown_asks_nobody(site: Site) -> None:
    site.backend.delete_volume(GROUP, VOLUME)
    site.backend.delete_snapshot(SNAPSHOT, [VOLUME])
    site.backend.delete_group(GROUP)
    assert site.driver.calls == []


def test_several_volumes_without_consistent_snapshots_are_refused(site: Site) -> None:
    site.with_volumes(VOLUME, SECOND)
    with pytest.raises(StorageConflictError, match="one LUN in each LUN group"):
        site.backend.take_snapshot(GROUP, SNAPSHOT, [VOLUME, SECOND])
    assert site.backend.snapshots() == []
    assert "take_snapshots" not in site.driver.calls
    assert site.backend.take_snapshot(GROUP, SNAPSHOT, [VOLUME]) == SnapshotTimes(1.0, 2.0, 0.0)


def test_a_group_is_snapshot_as_one_where_the_array_can(grouped: Site) -> None:
    grouped.with_volumes(VOLUME, SECOND)
    grouped.backend.take_snapshot(GROUP, SNAPSHOT, [VOLUME, SECOND])
    assert grouped.driver.calls == ["take_group_snapshot"]
    taken = grouped.remembered.snapshot(SNAPSHOT)
    assert taken is not None
    told = taken.told(VOLUME)
    assert told["id"] == snapshot_of(SNAPSHOT, VOLUME)
    assert told["model"] == {"provider_id": told["id"][:4]}
    assert told["whole"]["group"]["id"] == GROUP
    grouped.backend.delete_snapshot(SNAPSHOT, [VOLUME, SECOND])
    assert grouped.driver.calls[-1] == "delete_group_snapshot"
    assert grouped.backend.snapshots() == []


def test_a_snapshot_that_fails_leaves_no_note(site: Site) -> None:
    site.with_volumes(VOLUME)
    site.driver.failing = {"take_snapshots"}
    with pytest.raises(StorageUnreachableError):
        site.backend.take_snapshot(GROUP, SNAPSHOT, [VOLUME])
    assert site.driver.calls == ["take_snapshots", "delete_snapshot"]
    assert site.backend.snapshots() == []


def test_a_clone_cut_short_is_begun_anew(grouped: Site) -> None:
    grouped.with_volumes(VOLUME)
    grouped.backend.take_snapshot(GROUP, SNAPSHOT, [VOLUME])
    grouped.driver.failing = {"copy"}
    with pytest.raises(StorageUnreachableError):
        grouped.backend.clone(SNAPSHOT, OTHER, {VOLUME: SECOND}, {SECOND: "c/a"})
    assert set(grouped.backend.groups()) == {GROUP, OTHER}
    grouped.driver.failing.clear()
    grouped.driver.calls.clear()
    made = grouped.backend.clone(SNAPSHOT, OTHER, {VOLUME: SECOND}, {SECOND: "c/a"})
    assert grouped.driver.calls == ["delete_volume", "delete_group", "copy"]
    assert list(made) == [SECOND]
    grouped.driver.calls.clear()
    assert grouped.backend.clone(SNAPSHOT, OTHER, {VOLUME: SECOND}, {}) == made
    assert grouped.driver.calls == []


def test_moving_changes_the_array_s_groups_if_it_has_them(site: Site, grouped: Site) -> None:
    for each, calls in ((site, []), (grouped, ["move"])):
        each.with_volumes(VOLUME)
        each.backend.create_group(OTHER)
        each.driver.calls.clear()
        for _ in range(2):
            each.backend.move_volume(VOLUME, GROUP, OTHER)
        assert each.driver.calls == calls
        kept = each.remembered.volume(VOLUME)
        assert kept is not None
        assert kept.group == OTHER


def test_growing_and_reverting_change_the_size(site: Site) -> None:
    site.with_volumes(VOLUME)
    site.backend.take_snapshot(GROUP, SNAPSHOT, [VOLUME])
    for _ in range(2):
        site.backend.grow_volume(GROUP, VOLUME, 3 * GIB)
    assert site.driver.calls.count("grow") == 1
    assert site.backend.volumes() == {VOLUME: 3 * GIB}
    site.path.measured = GIB
    site.backend.revert(GROUP, SNAPSHOT, [VOLUME])
    assert site.backend.volumes() == {VOLUME: GIB}


@pytest.mark.parametrize(("measured", "calls"), [(GIB, ["grow"]), (2 * GIB, [])])
def test_a_volume_is_not_grown_twice(site: Site, measured: int, calls: list[str]) -> None:
    site.with_volumes(VOLUME)
    site.driver.failing = {"grow"}
    with pytest.raises(StorageUnreachableError):
        site.backend.grow_volume(GROUP, VOLUME, 2 * GIB)
    site.driver.failing.clear()
    site.driver.calls.clear()
    site.path.measured = measured  # before the answer was lost, or after
    for _ in range(2):
        site.backend.grow_volume(GROUP, VOLUME, 2 * GIB)
    assert site.driver.calls == calls
    assert site.backend.volumes() == {VOLUME: 2 * GIB}


def test_exactly_the_wanted_hosts_are_connected(site: Site) -> None:
    site.with_volumes(VOLUME)
    assert site.backend.portals(GROUP, export(ESX1)) == ()
    assert len(site.backend.serve(GROUP, [export(ESX1)])) == 1
    assert site.backend.serve(GROUP, [export(ESX1)]) == []
    assert [each.address for each in site.backend.portals(GROUP, export(ESX1))] == ["10.0.0.1"]
    site.driver.calls.clear()
    site.backend.serve(GROUP, [export(ESX2)])
    assert site.driver.calls == ["disconnect", "connect"]
    site.backend.serve(GROUP, [])
    assert site.driver.calls == ["disconnect", "connect", "disconnect"]
    assert site.remembered.connections() == []


def test_a_connection_cut_short_is_made_anew(site: Site) -> None:
    site.with_volumes(VOLUME)
    site.driver.failing = {"connect"}
    with pytest.raises(StorageUnreachableError):
        site.backend.serve(GROUP, [export(ESX1)])
    assert site.backend.portals(GROUP, export(ESX1)) == ()
    site.driver.failing.clear()
    site.driver.calls.clear()
    site.backend.serve(GROUP, [export(ESX1)])
    assert site.driver.calls == ["disconnect", "connect"]


def test_a_volume_loses_its_connections_before_it_goes(site: Site) -> None:
    site.with_volumes(VOLUME)
    site.backend.serve(GROUP, [export(ESX1)])
    site.driver.calls.clear()
    site.backend.delete_volume(GROUP, VOLUME)
    assert site.driver.calls == ["disconnect", "delete_volume"]
    assert {key for key in site.notes.kept if not key.startswith("facts:")} == set()


@pytest.mark.parametrize(
    ("protocol", "found"),
    [("iSCSI", {"iscsi"}), ("FC", {"fc"}), ("fibre_channel", {"fc"}), ("NFS", set())],
)
def test_protocols_are_what_the_driver_says(tmp_path: Path, protocol: str, found: set[str]) -> None:
    site = Site(tmp_path, {**FACTS, "protocol": protocol})
    capabilities = site.backend.capabilities
    assert capabilities.protocols == found
    assert (capabilities.changed_extents, capabilities.unit_bytes) == ("compared", GIB)
    assert not capabilities.chap
