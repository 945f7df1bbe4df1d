"""What is the ONTAP driver's own, over a fake SVM that holds data and refuses as one does."""

import itertools
import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from array_http import Fault
from array_iscsi import Account
from array_system import MIB, Reader, System
from atoll.model.errors import (
    AuthenticationError,
    ConfigurationError,
    PoolFullError,
    StorageConflictError,
    StorageUnreachableError,
)
from atoll.model.extents import Extent
from atoll.storage.drivers.ontap import flexvols, session
from atoll.storage.engine import ManagedEngine
from atoll_lab.iscsi import IscsiLun
from ontap_array import FlexVolState, IgroupState, OntapArray, broken, busy, ontap_array

pytestmark = pytest.mark.needs_root

ESX1 = "iqn.1998-01.com.vmware:esx1"
ESX2 = "iqn.1998-01.com.vmware:esx2"
WWPN = "naa.21000024ff0a1b2c"
SIZE = 16 * MIB

_NUMBERS = itertools.count()


@pytest.fixture
def array(btrfs_mount: Path) -> Iterator[OntapArray]:
    with ontap_array(btrfs_mount / f"ontap{next(_NUMBERS)}", page_size=2) as made:
        yield made


@pytest.fixture
def system(array: OntapArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
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


def names(array: OntapArray) -> list[str]:
    return sorted(each.name for each in array.flexvols.values())


def test_a_call_is_repeated_as_long_as_the_cluster_is_busy_or_gone(
    engine: ManagedEngine, array: OntapArray
) -> None:
    with array.server.faults(
        busy("GET", "storage/volumes", 1), Fault("POST", "/api/storage/volumes", "drop-after")
    ):
        engine.create_group("g")
    with array.server.faults(
        broken("POST", "storage/luns", 2), Fault("GET", "/api/storage/luns", "drop")
    ):
        engine.create_lun("g", "a", SIZE)
    with array.server.faults(Fault("POST", ".*/snapshots", "drop-after")):
        engine.snapshot_group("g", "s")
    with array.server.faults(
        Fault("POST", ".*/igroups", "drop-after"),
        Fault("POST", ".*/lun-maps", "drop-after"),
        Fault("GET", ".*/lun-maps", status=503, body={}),
    ):
        engine.present("g", "a", [ESX1])
    with array.server.faults(
        Fault("PATCH", "/api/storage/luns/.*", "drop-after"),
        Fault("DELETE", "/api/storage/luns/.*", "drop-after"),
        Fault("DELETE", "/api/storage/volumes/.*", "drop-after"),
    ):
        engine.clone("g", "s", "c")
        engine.delete_clone("c")
    assert engine.reconcile() == []
    assert [len(each.snapshots) for each in array.flexvols.values()] == [1]
    assert [lun.comment for lun in array.luns.values()] == ["g/a"]


def test_what_does_not_pass_is_told(engine: ManagedEngine, array: OntapArray) -> None:
    with (
        array.server.faults(broken("POST", "storage/volumes", 4)),
        pytest.raises(StorageUnreachableError, match="Internal error"),
    ):
        engine.create_group("g")
    with (
        array.server.faults(Fault("POST", "/api/storage/volumes", "drop", times=4)),
        pytest.raises(StorageUnreachableError, match="did not answer"),
    ):
        engine.create_group("g")
    assert engine.groups() == []


def test_jobs_are_waited_for(
    engine: ManagedEngine, array: OntapArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    array.slow_jobs = 3
    one_lun(engine)
    engine.snapshot_group("g", "s")
    polls = [each for each in array.server.requests if "/jobs/" in each.path]
    assert len(polls) >= 8
    array.slow_jobs = 0
    array.fail_jobs["snapshot-create"] = "Snapshot operation failed: the volume is busy."
    with pytest.raises(StorageConflictError, match="the volume is busy"):
        engine.snapshot_group("g", "t")
    array.fail_jobs["volume-create"] = "Not enough space in aggregate aggr1."
    with pytest.raises(PoolFullError, match="make room"):
        engine.create_group("h")
    assert [taken.name for taken in engine.snapshots("g")] == ["s"]
    assert engine.reconcile() == []


def test_a_job_without_end_is_told(
    system: System, array: OntapArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = system.changed(job_seconds=2).create()
    monkeypatch.setattr("time.sleep", lambda _: None)
    array.slow_jobs = 10
    with pytest.raises(StorageUnreachableError, match="timed out") as late:
        engine.create_group("g")
    assert not late.value.retryable
    array.slow_jobs = 0
    engine.reconcile()
    assert names(array) == []


def test_secrets_and_certificates_are_checked_and_kept(
    system: System, array: OntapArray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "chap").write_text("a-secret-of-esx1\n")
    engine = system.changed(
        chap=[{"initiator": ESX1, "user": "esx1", "secret_file": str(tmp_path / "chap")}]
    ).create()
    one_lun(engine)
    engine.present("g", "a", [ESX1])
    password = array.password
    assert password not in caplog.text
    assert "a-secret-of-esx1" not in caplog.text
    array.password = "another"
    with pytest.raises(AuthenticationError) as refused:
        system.open()
    assert password not in str(refused.value)
    array.password = password
    with pytest.raises(AuthenticationError, match="ca_file"):
        system.changed(ca_file=None).open()
    assert system.changed(ca_file=None, verify=False).open().groups()


def test_settings_of_other_programs_do_not_decide_whom_we_trust(
    system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert system.create().groups() == []


def test_clusters_that_will_not_do_are_refused_at_once(system: System, array: OntapArray) -> None:
    for keys, match in (
        ({"svm": "svm9"}, "no SVM svm9"),
        ({"aggregate": "aggr9"}, "no aggregate aggr9"),
    ):
        with pytest.raises(StorageConflictError, match=match):
            system.changed(**keys).create()
    array.version = (9, 9, 1)
    with pytest.raises(StorageConflictError, match=r"9\.11\.1"):
        system.create()


def test_without_the_sdk_one_sentence_says_what_to_install(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "netapp_ontap", None)
    with pytest.raises(ConfigurationError, match=r"netapp-ontap.*atoll\[ontap\]"):
        system.create()


def test_nothing_of_others_is_seen_or_touched(system: System, array: OntapArray) -> None:
    theirs = FlexVolState("theirs", "prod", 1 << 30)
    array.flexvols["theirs"] = theirs
    lun = array._new_lun("/vol/prod/db", "vmware", comment="", thin=True)
    array.blocks.create(lun.key, SIZE)
    array.igroups["esx"] = IgroupState("esx", "esx1", "vmware", "iscsi", [ESX1])
    array.maps[lun.uuid, "esx"] = 0
    engine = system.create()
    assert engine._backend.volumes() == {}
    assert engine._backend.groups() == set()
    one_lun(engine)
    with connect(engine) as opened:
        assert opened.read_capacity() == SIZE
    engine.snapshot_group("g", "s")
    engine.clone("g", "s", "c")
    engine.delete_clone("c")
    engine.delete_group("g", force=True)
    assert engine.reconcile() == []
    assert names(array) == ["prod"]
    assert list(array.luns) == [lun.uuid]
    assert [each.name for each in array.igroups.values()] == ["esx1"]
    assert array.maps == {(lun.uuid, "esx"): 0}


def test_credentials_of_others_stay(system: System, array: OntapArray, tmp_path: Path) -> None:
    (tmp_path / "chap").write_text("a-secret-of-esx1\n")
    theirs = Account("admin", "secret-of-admin")
    array.credentials[ESX1] = theirs
    account = {"initiator": ESX1, "user": "esx1", "secret_file": str(tmp_path / "chap")}
    engine = system.changed(chap=[account]).create()
    one_lun(engine)
    with pytest.raises(StorageConflictError, match="did not make"):
        engine.present("g", "a", [ESX1])
    assert array.credentials == {ESX1: theirs}
    same = Account("esx1", "a-secret-of-esx1")
    array.credentials[ESX1] = same
    engine.present("g", "a", [ESX1])
    engine.withdraw("g", "a")
    assert array.credentials == {ESX1: same}


def test_accounts_come_change_and_go_with_their_igroup(
    system: System, array: OntapArray, tmp_path: Path
) -> None:
    secret = tmp_path / "chap"
    secret.write_text("a-secret-of-esx1\n")
    account = {"initiator": ESX1, "user": "esx1", "secret_file": str(secret)}
    with_chap = system.changed(chap=[account])
    engine = with_chap.create()
    one_lun(engine)
    with array.server.faults(Fault("POST", ".*/credentials", "drop-after")):
        engine.present("g", "a", [ESX1])
    assert array.credentials == {ESX1: Account("esx1", "a-secret-of-esx1")}
    secret.write_text("another-secret-1\n")
    assert with_chap.open().reconcile() == []
    assert array.credentials == {ESX1: Account("esx1", "another-secret-1")}
    system.open().reconcile()
    assert array.credentials == {}
    with_chap.open().reconcile()
    assert array.credentials == {ESX1: Account("esx1", "another-secret-1")}
    engine.withdraw("g", "a")
    assert (array.credentials, array.igroups) == ({}, {})


def test_lun_numbers_that_hosts_use_are_left_to_them(system: System, array: OntapArray) -> None:
    engine = system.create()
    first = engine._backend._igroups._numbers._seed % 1023 + 1
    array.flexvols["theirs"] = FlexVolState("theirs", "prod", 1 << 30)
    lun = array._new_lun("/vol/prod/db", "vmware", comment="", thin=True)
    array.blocks.create(lun.key, SIZE)
    array.igroups["esx"] = IgroupState("esx", "esx1", "vmware", "iscsi", [ESX1])
    array.maps[lun.uuid, "esx"] = first
    one_lun(engine)
    number = engine.present("g", "a", [ESX1]).portals[0].lun_number
    assert number != first
    array.igroups["esx2"] = IgroupState("esx2", "esx2", "vmware", "iscsi", [ESX2])
    array.maps[lun.uuid, "esx2"] = number
    with pytest.raises(StorageConflictError, match="already in use"):
        engine.present("g", "a", [ESX1, ESX2])


def test_fibre_channel_ports_are_igroups_by_wwpn(system: System, array: OntapArray) -> None:
    array.wwpns = ["20:00:00:50:56:b4:13:a8"]
    engine = system.create()
    assert engine.capabilities.protocols == {"iscsi", "fc"}
    one_lun(engine)
    shown = engine.present("g", "a", [WWPN])
    assert [portal.target for portal in shown.portals] == ["naa.2000005056b413a8"]
    (igroup,) = array.igroups.values()
    assert (igroup.protocol, igroup.initiators) == ("fcp", ["21:00:00:24:ff:0a:1b:2c"])
    assert engine.present("g", "a", [WWPN]) == shown
    assert engine.reconcile() == []


def test_the_cluster_gets_a_change_made_behind_our_back_undone(
    engine: ManagedEngine, array: OntapArray
) -> None:
    one_lun(engine)
    engine.present("g", "a", [ESX1])
    (lun,) = array.luns
    array.igroups["thief"] = IgroupState("thief", "thief", "vmware", "iscsi", [ESX2])
    array.maps[lun, "thief"] = 5
    (told,) = engine.reconcile()
    assert "anew" in told
    assert (lun, "thief") not in array.maps
    engine.withdraw("g", "a")
    array.maps[lun, "thief"] = 5
    array.luns[lun].online = False
    (told,) = engine.reconcile()
    assert "presented to nobody" in told
    assert array.maps == {}
    assert list(array.igroups) == ["thief"]
    engine.present("g", "a", [ESX1])
    assert array.luns[lun].online


@pytest.mark.parametrize("eradicate", [False, True])
def test_flexvols_are_recoverable_unless_eradicated(
    system: System, array: OntapArray, eradicate: bool
) -> None:
    engine = system.changed(eradicate=eradicate).create()
    one_lun(engine)
    engine.snapshot_group("g", "s")
    engine.open_snapshot("g", "a", "s").close()
    engine.delete_group("g", force=True)
    engine.delete_group("g", force=True)
    deleted = [each for each in array.server.requests if each.method == "DELETE"]
    forced = [each.query["force"] for each in deleted if "/snapshots/" not in each.path
              and "/volumes/" in each.path]  # fmt: skip
    assert forced == ["true", str(eradicate).lower()]
    assert names(array) == []


def test_flexvols_grow_with_their_luns(engine: ManagedEngine, array: OntapArray) -> None:
    one_lun(engine)
    (flexvol,) = array.flexvols.values()
    assert flexvol.size == (1 << 30) + 2 * SIZE
    engine.create_lun("g", "b", 1 << 30)
    assert flexvol.size == (1 << 30) + 2 * (SIZE + (1 << 30))
    engine.grow_lun("g", "b", 2 << 30)
    assert flexvol.size == (1 << 30) + 2 * (SIZE + (2 << 30))


def test_a_move_is_waited_for(
    engine: ManagedEngine, array: OntapArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flexvols, "waits", lambda *_: range(10))
    one_lun(engine)
    engine.create_group("h")
    before = engine.groups()[0].luns[0]
    engine.snapshot_group("g", "s")
    after = engine.move_lun("g", "a", "h")
    assert (after.naa, after.serial) == (before.naa, before.serial)
    assert all(lun.moving == 0 for lun in array.luns.values())
    with closing(engine.open_snapshot("g", "a", "s")) as reader:
        assert reader.size_bytes == SIZE
    engine.create_group("k")
    engine.snapshot_group("h", "t")
    monkeypatch.setattr(flexvols, "waits", lambda *_: range(1))
    with pytest.raises(StorageUnreachableError, match="still moves"):
        engine.move_lun("h", "a", "k")
    monkeypatch.setattr(flexvols, "waits", lambda *_: range(10))
    engine.reconcile()
    assert {group.name: len(group.luns) for group in engine.groups()} == {"g": 0, "h": 0, "k": 1}
    assert engine.reconcile() == []


def test_everything_counts_as_changed_at_the_size_of_then(
    engine: ManagedEngine, array: OntapArray
) -> None:
    one_lun(engine)
    engine.snapshot_group("g", "s")
    engine.snapshot_group("g", "t")
    engine.grow_lun("g", "a", 2 * SIZE)
    engine.snapshot_group("g", "u")
    assert engine.capabilities.changed_extents == "compared"
    assert list(engine.changed_extents("g", "a", "s", "t")) == [Extent(0, SIZE)]
    assert list(engine.changed_extents("g", "a", "t", "u")) == [Extent(0, 2 * SIZE)]


def test_a_snapshot_that_is_read_stays_until_its_reader_is_gone(
    system: System, engine: ManagedEngine, array: OntapArray
) -> None:
    one_lun(engine)
    with connect(engine) as lun:
        lun.write(0, b"kept" * 1024)
    engine.snapshot_group("g", "s")
    reader = Reader(system, "g", "a", "s")
    try:
        assert reader.first == b"kept"
        system.open()
        assert sum("_r_" in name for name in names(array)) == 1
        assert engine.reconcile() == []
        with pytest.raises(StorageConflictError, match="busy"):
            engine.delete_snapshot("g", "s")
    finally:
        reader.kill()
    engine.delete_snapshot("g", "s")
    assert not any("_r_" in name for name in names(array))
    assert [len(each.snapshots) for each in array.flexvols.values()] == [0]
    assert not list(engine.runtime_directory.glob("_reading-*"))
    assert engine.reconcile() == []


def test_a_reader_that_cannot_open_leaves_no_copy(engine: ManagedEngine, array: OntapArray) -> None:
    one_lun(engine)
    engine.snapshot_group("g", "s")
    with (
        array.server.faults(broken("POST", "protocols/san/lun-maps", 4)),
        pytest.raises(StorageUnreachableError),
    ):
        engine.open_snapshot("g", "a", "s")
    assert not any("_r_" in name for name in names(array))
    with closing(engine.open_snapshot("g", "a", "s")) as reader:
        assert reader.read(0, 4096) == bytes(4096)
        assert list(reader.holes()) == [Extent(0, SIZE)]


def test_the_proxy_reads_with_chap_when_it_has_an_account(
    system: System, array: OntapArray, tmp_path: Path
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
        assert array.credentials == {
            "iqn.2026-11.org.atoll:backup1": Account("backup1", "secret-of-proxy")
        }
        assert reader.read(0, 4096) == bytes(4096)
    assert array.credentials == {}


def test_an_unfinished_clone_is_finished_or_goes(engine: ManagedEngine, array: OntapArray) -> None:
    one_lun(engine)
    engine.create_lun("g", "b", SIZE)
    engine.snapshot_group("g", "s")
    with (
        array.server.faults(
            Fault("PATCH", "/api/storage/luns/.*", status=409, body={"error": {"message": "no"}})
        ),
        pytest.raises(StorageConflictError),
    ):
        engine.clone("g", "s", "c")
    assert len(names(array)) == 1
    made = engine.clone("g", "s", "c")
    assert len({lun.serial for lun in made.luns}) == 2
    assert sorted(lun.comment for lun in array.luns.values()) == ["c/a", "c/b", "g/a", "g/b"]


def test_a_luns_identity_is_the_clusters(engine: ManagedEngine, array: OntapArray) -> None:
    one_lun(engine)
    (state,) = array.luns.values()
    lun = engine.groups()[0].luns[0]
    assert lun.serial == state.serial
    assert lun.naa == "naa.600a0980" + state.serial.encode().hex()
    assert (lun.vendor, lun.product) == ("NETAPP", "LUN C-Mode")
    assert (state.os_type, state.thin) == ("vmware", True)
