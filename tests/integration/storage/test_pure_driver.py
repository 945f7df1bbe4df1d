"""What is the Pure driver's own, over a fake FlashArray that holds data and refuses as one does."""

import itertools
import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from array_http import Fault
from array_system import MIB, Reader, System
from atoll.model.errors import (
    AuthenticationError,
    ConfigurationError,
    StorageConflictError,
    StorageUnreachableError,
)
from atoll.storage.drivers.pure import session
from atoll.storage.engine import ManagedEngine
from atoll_lab.iscsi import IscsiLun
from pure_array import Host, ProtectionGroup, PureArray, Volume, broken, busy, pure_array

pytestmark = pytest.mark.needs_root

ESX1 = "iqn.1998-01.com.vmware:esx1"
ESX2 = "iqn.1998-01.com.vmware:esx2"
WWPN = "naa.21000024ff0a1b2c"
SIZE = 16 * MIB

_NUMBERS = itertools.count()


@pytest.fixture
def array(btrfs_mount: Path) -> Iterator[PureArray]:
    with pure_array(btrfs_mount / f"pure{next(_NUMBERS)}", page_size=3) as made:
        yield made


@pytest.fixture
def system(array: PureArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    monkeypatch.setattr(session, "PAUSES_SECONDS", (0.0,) * 3)
    with System(tmp_path, array.settings(tmp_path)) as made:
        yield made


@pytest.fixture
def engine(system: System) -> ManagedEngine:
    return system.create()


def one_lun(engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", SIZE)


def connect(engine: ManagedEngine, group: str = "g", initiator: str = ESX1) -> IscsiLun:
    portal = engine.present(group, "a", [initiator]).portals[0]
    return IscsiLun(f"{portal.address}:{portal.port}", portal.target, portal.lun_number, initiator)


def test_a_call_is_repeated_as_long_as_the_array_is_busy_or_gone(
    engine: ManagedEngine, array: PureArray
) -> None:
    engine.create_group("g")
    with array.server.faults(
        busy("POST", "volumes", 2),
        broken("PUT", "volumes/tags/batch", 2),
        Fault("POST", ".*/protection-groups/volumes", "drop"),
        Fault("GET", ".*/volumes", "drop-after"),
    ):
        engine.create_lun("g", "a", SIZE)
    with array.server.faults(Fault("POST", ".*/protection-group-snapshots", "drop-after")):
        engine.snapshot_group("g", "s")
    with array.server.faults(
        Fault("POST", ".*/hosts", status=503, body={}),
        Fault("POST", ".*/connections", "drop-after"),
    ):
        engine.present("g", "a", [ESX1])
    with array.server.faults(
        Fault("POST", ".*/hosts", "drop-after"),
        Fault("DELETE", ".*/connections", "drop-after"),
        Fault("DELETE", ".*/hosts", "drop-after"),
    ):
        engine.present("g", "a", [ESX2])
    assert [host.iqns for host in array.hosts.values()] == [[ESX2]]
    with array.server.faults(
        Fault("POST", ".*/volumes", "drop-after"), Fault("PATCH", ".*/volumes", "drop-after")
    ):
        engine.clone("g", "s", "c")
        engine.delete_clone("c")
    array.end_sessions()
    assert engine.reconcile() == []
    assert len(array.snapshots) == 1
    live = [volume for volume in array.volumes.values() if not volume.destroyed]
    assert [volume.tags for volume in live] == [{("atoll", "lun"): "g/a"}]


def test_what_does_not_pass_is_told(engine: ManagedEngine, array: PureArray) -> None:
    with (
        array.server.faults(broken("POST", "protection-groups", 4)),
        pytest.raises(StorageUnreachableError, match="Internal server error"),
    ):
        engine.create_group("g")
    with (
        array.server.faults(Fault("POST", ".*/protection-groups", "drop", times=4)),
        pytest.raises(StorageUnreachableError, match="did not answer"),
    ):
        engine.create_group("g")
    assert engine.groups() == []


def test_secrets_and_certificates_are_checked_and_kept(
    system: System, array: PureArray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = system.changed(
        chap=[{"initiator": ESX1, "user": "esx1", "secret_file": str(tmp_path / "chap")}],
    )
    (tmp_path / "chap").write_text("a-secret-of-esx1\n")
    opened = engine.create()
    one_lun(opened)
    opened.present("g", "a", [ESX1])
    assert array.api_token not in caplog.text
    assert "a-secret-of-esx1" not in caplog.text

    token = array.api_token
    array.api_token = "another"
    array.end_sessions()
    with pytest.raises(AuthenticationError) as refused:
        system.open()
    assert token not in str(refused.value)
    array.api_token = token
    stranger = array.server.ca_file.with_name("stranger.pem")
    with pure_array(tmp_path / "other") as other:
        stranger.write_bytes(other.server.ca_file.read_bytes())
    with pytest.raises(AuthenticationError, match="ca_file"):
        system.changed(ca_file=str(stranger)).open()
    with pytest.raises(AuthenticationError, match="ca_file"):
        system.changed(ca_file=None).open()
    assert system.changed(ca_file=None, verify=False).open().groups()


def test_a_role_that_may_not_is_told(engine: ManagedEngine, array: PureArray) -> None:
    with (
        array.server.faults(
            Fault("POST", ".*/protection-groups", status=403, body={"message": "Forbidden"})
        ),
        pytest.raises(AuthenticationError, match="role"),
    ):
        engine.create_group("g")


def test_arrays_that_will_not_do_are_refused_at_once(system: System, array: PureArray) -> None:
    array.has_iscsi = False
    with pytest.raises(StorageConflictError, match="no iSCSI port"):
        system.create()
    array.has_iscsi = True
    array.versions = ["1.19", "2.0", "2.10"]
    with pytest.raises(StorageConflictError, match=r"2\.16"):
        system.create()


def test_without_the_sdk_one_sentence_says_what_to_install(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypureclient", None)
    monkeypatch.setitem(sys.modules, "pypureclient.flasharray", None)
    with pytest.raises(ConfigurationError, match=r"py-pure-client.*atoll\[pure\]"):
        system.create()


def test_nothing_of_others_is_seen_or_touched(system: System, array: PureArray) -> None:
    theirs = Volume("prod-db", "AA" * 12, "theirs", 0)
    near = Volume("atoll-000000000000-" + "0" * 32, "BB" * 12, "near", 0)
    for volume in (theirs, near):
        array.blocks.create(volume.key, SIZE)
        array.volumes[volume.name] = volume
    array.groups["prod-pg"] = ProtectionGroup("prod-pg", ["prod-db"])
    array.hosts["esx1"] = Host("esx1", iqns=[ESX1.upper()], personality="esxi")
    array.connections["prod-db", "esx1"] = 7
    engine = system.create()
    before = (dict(array.volumes), dict(array.groups), dict(array.connections))
    assert engine._backend.volumes() == {}
    assert engine._backend.groups() == set()
    one_lun(engine)
    with connect(engine, initiator=ESX1) as lun:
        assert lun.read_capacity() == SIZE
    assert list(array.hosts) == ["esx1"]
    engine.snapshot_group("g", "s")
    engine.clone("g", "s", "c")
    engine.delete_clone("c")
    engine.delete_group("g", force=True)
    assert engine.reconcile() == []
    assert list(array.hosts) == ["esx1"]
    left = {name: one for name, one in array.volumes.items() if not one.destroyed}
    groups = {name: one for name, one in array.groups.items() if not one.destroyed}
    assert (left, groups, array.connections) == before


def test_a_host_of_others_keeps_its_account(
    system: System, array: PureArray, tmp_path: Path
) -> None:
    (tmp_path / "chap").write_text("a-secret-of-esx1\n")
    array.hosts["esx1"] = Host("esx1", iqns=[ESX1])
    engine = system.changed(
        chap=[{"initiator": ESX1, "user": "esx1", "secret_file": str(tmp_path / "chap")}],
    ).create()
    one_lun(engine)
    with pytest.raises(StorageConflictError, match="did not make it"):
        engine.present("g", "a", [ESX1])
    assert array.hosts["esx1"].account is None
    assert array.connections == {}


def test_lun_numbers_that_hosts_use_are_left_to_them(system: System, array: PureArray) -> None:
    engine = system.create()
    first = engine._backend._hosts._numbers._seed % 1023 + 1
    theirs = Volume("prod-db", "AA" * 12, "theirs", 0)
    array.blocks.create(theirs.key, SIZE)
    array.volumes[theirs.name] = theirs
    array.hosts["esx1"] = Host("esx1", iqns=[ESX1])
    array.connections["prod-db", "esx1"] = first
    one_lun(engine)
    number = engine.present("g", "a", [ESX1]).portals[0].lun_number
    assert number != first
    array.hosts["esx2"] = Host("esx2", iqns=[ESX2])
    array.connections["prod-db", "esx2"] = number
    with pytest.raises(StorageConflictError, match="already in use"):
        engine.present("g", "a", [ESX1, ESX2])


def test_hosts_of_ours_go_with_their_last_connection(
    engine: ManagedEngine, array: PureArray
) -> None:
    one_lun(engine)
    engine.create_group("h")
    engine.create_lun("h", "a", SIZE)
    engine.present("g", "a", [ESX1])
    engine.present("h", "a", [ESX1, ESX2])
    assert {host.personality for host in array.hosts.values()} == {"esxi"}
    assert len(array.hosts) == 2
    engine.withdraw("h", "a")
    assert [host.iqns for host in array.hosts.values()] == [[ESX1]]
    engine.withdraw("g", "a")
    assert array.hosts == {}


def test_fibre_channel_ports_are_hosts_by_wwpn(system: System, array: PureArray) -> None:
    array.wwns = ["52:4A:93:7A:BC:DE:F0:00", "52:4A:93:7A:BC:DE:F0:10"]
    engine = system.create()
    assert engine.capabilities.protocols == {"iscsi", "fc"}
    one_lun(engine)
    shown = engine.present("g", "a", [WWPN])
    assert [portal.target for portal in shown.portals] == [
        "naa.524a937abcdef000",
        "naa.524a937abcdef010",
    ]
    assert [host.wwns for host in array.hosts.values()] == [["21:00:00:24:FF:0A:1B:2C"]]
    assert engine.present("g", "a", [WWPN]) == shown
    assert len(engine.present("g", "a", [WWPN, ESX1]).portals) == 4
    assert engine.reconcile() == []


def test_the_array_gets_a_change_made_behind_our_back_undone(
    engine: ManagedEngine, array: PureArray
) -> None:
    one_lun(engine)
    engine.present("g", "a", [ESX1])
    (name,) = array.volumes
    array.hosts["thief"] = Host("thief", iqns=[ESX2])
    array.connections[name, "thief"] = 5
    (told,) = engine.reconcile()
    assert "anew" in told
    assert (name, "thief") not in array.connections
    assert "thief" in array.hosts
    engine.withdraw("g", "a")
    array.connections[name, "thief"] = 5
    (told,) = engine.reconcile()
    assert "presented to nobody" in told
    assert array.connections == {}


@pytest.mark.parametrize("eradicate", [False, True])
@pytest.mark.parametrize("safe_mode", [False, True])
def test_what_is_deleted_is_destroyed_and_eradicated_if_so_set(
    system: System, array: PureArray, eradicate: bool, safe_mode: bool
) -> None:
    array.safe_mode = safe_mode
    engine = system.changed(eradicate=eradicate).create()
    one_lun(engine)
    engine.snapshot_group("g", "s")
    with closing(engine.open_snapshot("g", "a", "s")) as reader:
        assert reader.size_bytes == SIZE
    copies = [name for name in array.volumes if "-r-" in name]
    assert len(copies) == (1 if safe_mode else 0)
    engine.delete_group("g", force=True)
    engine.delete_group("g", force=True)
    assert engine.reconcile() == []
    left = [*array.volumes.values(), *array.groups.values(), *array.snapshots.values()]
    assert all(one.destroyed for one in left)
    assert bool(left) == (safe_mode or not eradicate)


def test_a_group_with_a_snapshot_of_somebody_else_stays(
    engine: ManagedEngine, array: PureArray
) -> None:
    one_lun(engine)
    engine.snapshot_group("g", "s")
    (taken,) = array.snapshots.values()
    name = f"{taken.source}.by-hand"
    array.snapshots[name] = type(taken)(name, taken.source, 0, [])
    assert len(engine._backend.snapshots()) == 1
    with pytest.raises(StorageConflictError, match="by-hand"):
        engine.delete_group("g", force=True)
    assert not array.snapshots[name].destroyed
    del array.snapshots[name]
    engine.reconcile()
    assert engine.groups() == []
    assert engine._backend.groups() == set()


def test_clones_stay_out_of_default_protection(system: System, array: PureArray) -> None:
    array.groups["auto"] = ProtectionGroup("auto")
    array.default_groups = ["auto"]
    engine = system.create()
    one_lun(engine)
    engine.snapshot_group("g", "s")
    engine.clone("g", "s", "c")
    with closing(engine.open_snapshot("g", "a", "s")):
        assert len(array.volumes) == 3
        assert len(array.groups["auto"].members) == 1


def test_pods_and_volume_groups_hold_everything(system: System, array: PureArray) -> None:
    within = system.changed(pod="pod1", volume_group="vg1")
    with pytest.raises(StorageConflictError, match="pod1"):
        within.create()
    array.pods.add("pod1")
    engine = within.create()
    assert array.volume_groups == {"pod1::vg1"}
    one_lun(engine)
    with connect(engine) as lun:
        lun.write(0, b"old!" * 1024)
        engine.snapshot_group("g", "s")
        lun.write(0, b"new!" * 1024)
        engine.snapshot_group("g", "t")
    assert all(name.startswith("pod1::vg1/atoll-") for name in array.volumes)
    assert all(name.startswith("pod1::atoll-") for name in array.groups)
    with closing(engine.open_snapshot("g", "a", "s")) as reader:
        assert reader.read(0, 4) == b"old!"
    assert [extent.length for extent in engine.changed_extents("g", "a", "s", "t")] == [4096]
    engine.withdraw("g", "a")
    engine.revert_group("g", "s")
    with connect(engine) as lun:
        assert lun.read(0, 512)[:4] == b"old!"
    assert engine.reconcile() == []
    engine.delete_group("g", force=True)
    assert engine._backend.volumes() == {}


def test_differences_and_lists_of_many_pages_are_whole(
    engine: ManagedEngine, array: PureArray
) -> None:
    engine.create_group("g")
    for name in "abcdefg":
        engine.create_lun("g", name, SIZE)
    assert len(engine._backend.volumes()) == 7
    engine.snapshot_group("g", "s")
    with connect(engine) as lun:
        for number in range(8):
            lun.write(number * MIB, b"x" * 4096)
    engine.snapshot_group("g", "t")
    found = list(engine.changed_extents("g", "a", "s", "t"))
    assert [(extent.offset, extent.length) for extent in found] == [
        (number * MIB, 4096) for number in range(8)
    ]
    with closing(engine.open_snapshot("g", "a", "t")) as reader:
        assert sum(hole.length for hole in reader.holes()) == SIZE - 8 * 4096
    with array.server.faults(broken("GET", "volumes/diff", 2)):
        assert list(engine.changed_extents("g", "a", "s", "t")) == found
    with (
        array.server.faults(broken("GET", "volumes/diff", 4)),
        pytest.raises(StorageUnreachableError),
    ):
        list(engine.changed_extents("g", "a", "s", "t"))


def test_reading_copies_live_as_long_as_their_readers(
    system: System, engine: ManagedEngine, array: PureArray
) -> None:
    one_lun(engine)
    with connect(engine) as lun:
        lun.write(0, b"kept" * 1024)
    engine.snapshot_group("g", "s")
    reader = Reader(system, "g", "a", "s")
    try:
        assert reader.first == b"kept"
        system.open()
        assert sum("-r-" in name for name in array.volumes) == 1
        assert engine.reconcile() == []
    finally:
        reader.kill()
    system.open()
    assert not any("-r-" in name for name in array.volumes)
    assert all("proxy" not in iqn for host in array.hosts.values() for iqn in host.iqns)
    assert not list(engine.runtime_directory.glob("_reading-*"))


def test_a_reader_that_cannot_open_leaves_no_copy(engine: ManagedEngine, array: PureArray) -> None:
    one_lun(engine)
    engine.snapshot_group("g", "s")
    with (
        array.server.faults(broken("POST", "connections", 4)),
        pytest.raises(StorageUnreachableError),
    ):
        engine.open_snapshot("g", "a", "s")
    assert not any("-r-" in name for name in array.volumes)
    reader = engine.open_snapshot("g", "a", "s")
    with array.server.faults(broken("DELETE", "connections", 4)):
        reader.close()  # what was read was read
    assert sum("-r-" in name for name in array.volumes) == 1
    engine._backend.clear()
    assert not any("-r-" in name for name in array.volumes)


def test_the_proxy_reads_with_chap_when_it_has_an_account(
    system: System, array: PureArray, tmp_path: Path
) -> None:
    (tmp_path / "proxy").write_text("secret-of-proxy\n")
    engine = system.changed(
        initiator="iqn.2026-11.org.atoll:backup1",
        initiator_user="backup1",
        initiator_secret_file=str(tmp_path / "proxy"),
    ).create()
    one_lun(engine)
    engine.snapshot_group("g", "s")
    with closing(engine.open_snapshot("g", "a", "s")) as reader:
        (host,) = array.hosts.values()
        assert host.iqns == ["iqn.2026-11.org.atoll:backup1"]
        assert host.account is not None
        assert (host.account.user, host.account.secret) == ("backup1", "secret-of-proxy")
        assert reader.read(0, 4096) == bytes(4096)


def test_a_luns_identity_is_the_arrays(engine: ManagedEngine, array: PureArray) -> None:
    one_lun(engine)
    (volume,) = array.volumes.values()
    lun = engine.groups()[0].luns[0]
    assert lun.serial == volume.serial
    assert lun.naa == f"naa.624a9370{volume.serial.lower()}"
    assert (lun.vendor, lun.product) == ("PURE", "FlashArray")
