"""Cinder's own driver for a FlashArray, on a fake one: what the compliance suite does not look at."""

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from atoll.model.errors import ConfigurationError, StorageConflictError
from atoll.model.storage import Portal
from atoll.storage.backend import Chap
from atoll.storage.initiator import InitiatorRefusedError, IscsiLun
from atoll.wiring import create_system, open_system
from cinder_flash_array import CinderFlashArray
from cinder_system import GIB, HOST, opened, section

BLOCK = 4096


def lun(portal: Portal, chap: Chap | None = None) -> IscsiLun:
    return IscsiLun(
        f"{portal.address}:{portal.port}", portal.target, portal.lun_number, HOST, chap=chap
    )


def test_luns_are_what_the_array_says_they_are(
    array: CinderFlashArray, array_keys: dict[str, Any], tmp_path: Path
) -> None:
    with opened(section(tmp_path, array_keys)) as engine:
        engine.create_group("g")
        made = engine.create_lun("g", "a", GIB)
        (volume,) = array.volumes.values()
        assert (made.naa, made.serial) == (f"naa.624a9370{volume.serial.lower()}", volume.serial)
        assert (made.vendor, made.product) == ("PURE", "FlashArray")
        assert array.connections == {}  # that of the question is gone
        shown = engine.present("g", "a", [HOST])
        assert [portal.address for portal in shown.portals] == ["127.0.0.1", "127.0.0.2"]
        (host,) = {name for _, name in array.connections}
        assert host.startswith("esx1-")


def test_a_group_is_one_of_the_array_s(
    array: CinderFlashArray, array_keys: dict[str, Any], tmp_path: Path
) -> None:
    with opened(section(tmp_path, array_keys)) as engine:
        for name in ("g", "h"):
            engine.create_group(name)
        for name in "ab":
            engine.create_lun("g", name, GIB)
        first = engine.snapshot_group("g", "s")
        assert first.pause_seconds == 0
        (taken,) = array.snapshots.values()
        assert len(taken.volumes) == 2
        engine.clone("g", "s", "c")
        assert sorted(len(group.members) for group in array.groups.values()) == [0, 2, 2]
        engine.delete_clone("c")
        engine.delete_snapshot("g", "s")
        engine.move_lun("g", "a", "h")
        assert sorted(len(group.members) for group in array.groups.values()) == [1, 1]
    assert (array.volumes, array.snapshots, array.groups) == ({}, {}, {})


def test_ports_of_one_host_are_one_host(
    array: CinderFlashArray, array_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**array_keys, "hosts": {"esx-one": [HOST]}}
    with opened(section(tmp_path, keys)) as engine:
        engine.create_group("g")
        engine.create_lun("g", "a", GIB)
        engine.present("g", "a", [HOST])
        (host,) = {name for _, name in array.connections}
        assert host.startswith("esx-one")


def test_what_a_dead_reader_left_goes_at_the_next_start(
    array: CinderFlashArray, array_keys: dict[str, Any], tmp_path: Path
) -> None:
    system = section(tmp_path, array_keys)
    with opened(system) as engine:
        engine.create_group("g")
        engine.create_lun("g", "a", GIB)
        engine.snapshot_group("g", "s")
        child = os.fork()
        if child == 0:
            open_system(system).open_snapshot("g", "a", "s")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(array.volumes) == 2
        with closing(open_system(system).open_snapshot("g", "a", "s")) as reader:
            assert len(array.volumes) == 2  # the dead one's is gone, the living one's is there
            other = open_system(system)
            assert reader.read(0, BLOCK) == bytes(BLOCK)
            assert len(array.volumes) == 2
        assert len(array.volumes) == 1
        assert len(array.groups) == 1
        assert other.reconcile() == []


def test_chap_is_the_array_s_and_is_told(
    array: CinderFlashArray, array_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**array_keys, "options": {**array_keys["options"], "use_chap_auth": True}}
    with opened(section(tmp_path, keys)) as engine:
        engine.create_group("g")
        engine.create_lun("g", "a", GIB)
        portal = engine.present("g", "a", [HOST]).portals[0]
        accounts = tmp_path / "state" / "chap.txt"
        assert accounts.stat().st_mode & 0o777 == 0o600
        (line,) = accounts.read_text().splitlines()
        _, user, secret = line.split()
        with pytest.raises(InitiatorRefusedError):
            lun(portal)
        with lun(portal, Chap(user, secret)) as session:
            session.write(0, b"mine" * 1024)
        engine.snapshot_group("g", "s")
        with closing(engine.open_snapshot("g", "a", "s")) as reader:  # with an account of its own
            assert reader.read(0, BLOCK) == b"mine" * 1024
        engine.withdraw("g", "a")
        assert not accounts.exists() or accounts.read_text() == ""
        log = (engine.runtime_directory / "cinder.log").read_text()
        assert secret not in log
        assert array.api_token not in log


def test_a_secret_among_the_options_is_refused(
    array: CinderFlashArray, array_keys: dict[str, Any], tmp_path: Path
) -> None:
    options = {**array_keys["options"], "pure_api_token": array.api_token}
    keys = {**array_keys, "options": options, "option_files": {}}
    with pytest.raises(ConfigurationError, match="option_files") as told:
        create_system(section(tmp_path, keys))
    assert array.api_token not in str(told.value)


def test_hosts_cannot_be_kept_from_writing(array_keys: dict[str, Any], tmp_path: Path) -> None:
    with opened(section(tmp_path, array_keys)) as engine:
        engine.create_group("g")
        engine.create_lun("g", "a", GIB)
        engine.snapshot_group("g", "s")
        with pytest.raises(StorageConflictError):
            engine.clone("g", "s", "c", read_only=True)


def test_fibre_channel_presents_and_iscsi_reads(
    array: CinderFlashArray, array_keys: dict[str, Any], tmp_path: Path
) -> None:
    driver = array_keys["volume_driver"]
    keys = {**array_keys, "volume_driver": driver.replace("ISCSI", "FC"), "reader_driver": driver}
    port = "naa.2100000e1e30acfc"
    array.wwns = ["52:4A:93:7A:B3:5A:14:00", "52:4A:93:7A:B3:5A:14:01"]
    try:
        with pytest.raises(StorageConflictError, match="reader_driver"):
            create_system(section(tmp_path, {**keys, "reader_driver": None}))
        with opened(section(tmp_path, keys)) as engine:
            assert engine.capabilities.protocols == {"fc"}
            engine.create_group("g")
            made = engine.create_lun("g", "a", GIB)
            assert made.naa.startswith("naa.624a9370")
            with pytest.raises(StorageConflictError):
                engine.present("g", "a", [HOST])
            shown = engine.present("g", "a", [port])
            assert [portal.target for portal in shown.portals] == [
                "naa.524a937ab35a1400",
                "naa.524a937ab35a1401",
            ]
            (host,) = array.hosts.values()
            assert host.wwns == ["21:00:00:0E:1E:30:AC:FC"]
            engine.snapshot_group("g", "s")
            with closing(engine.open_snapshot("g", "a", "s")) as reader:
                assert reader.size_bytes == GIB
    finally:
        array.wwns = []
