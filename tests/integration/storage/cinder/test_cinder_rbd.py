"""Cinder's RBD driver on a real cluster: what the compliance suite does not look at."""

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from atoll.model.errors import ConfigurationError, StorageConflictError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.storage.engine import ManagedEngine
from atoll.storage.initiator import IscsiLun
from atoll.wiring import create_system
from cinder_system import GIB, HOST, kill_sidecar, section, sidecar_of

MIB = 1 << 20
BLOCK = 4096


def test_volumes_have_whole_gib(rbd_engine: ManagedEngine) -> None:
    rbd_engine.create_group("g")
    with pytest.raises(StorageConflictError, match="1024 MiB"):
        rbd_engine.create_lun("g", "a", GIB + MIB)
    assert rbd_engine.create_lun("g", "a", GIB).size_bytes == GIB


def test_everything_counts_as_changed(rbd_engine: ManagedEngine) -> None:
    rbd_engine.create_group("g")
    rbd_engine.create_lun("g", "a", GIB)
    rbd_engine.snapshot_group("g", "old")
    rbd_engine.grow_lun("g", "a", 2 * GIB)
    rbd_engine.snapshot_group("g", "new")
    assert list(rbd_engine.changed_extents("g", "a", "old", "new")) == [Extent(0, 2 * GIB)]
    with closing(rbd_engine.open_snapshot("g", "a", "new")) as reader:
        assert reader.size_bytes == 2 * GIB
        assert sum(hole.length for hole in reader.holes()) == 2 * GIB


def test_a_write_held_back_for_a_snapshot_goes_on(rbd_engine: ManagedEngine) -> None:
    rbd_engine.create_group("g")
    for name in "abcd":
        rbd_engine.create_lun("g", name, GIB)
        portal = rbd_engine.present("g", name, [HOST]).portals[0]
    lun = IscsiLun(f"{portal.address}:{portal.port}", portal.target, portal.lun_number, HOST)
    written = threading.Event()

    def write() -> None:
        for _ in range(200):
            lun.write(0, b"data" * 1024)
        written.set()

    with lun:
        writer = threading.Thread(target=write)
        writer.start()
        taken = [rbd_engine.snapshot_group("g", f"s{number}") for number in range(3)]
        writer.join(60)
        assert written.is_set()
        assert lun.read(0, BLOCK) == b"data" * 1024
    assert all(0 < each.pause_seconds < 5 for each in taken)


def test_a_sidecar_that_is_killed_is_started_again(rbd_engine: ManagedEngine) -> None:
    rbd_engine.create_group("g")
    rbd_engine.create_lun("g", "a", GIB)
    kill_sidecar(rbd_engine)
    assert rbd_engine.create_lun("g", "b", GIB).size_bytes == GIB
    sidecar_of(rbd_engine).close()
    rbd_engine.snapshot_group("g", "s")
    assert rbd_engine.reconcile() == []


def test_a_call_whose_sidecar_dies_leaves_nothing(rbd_engine: ManagedEngine) -> None:
    rbd_engine.create_group("g")
    rbd_engine.create_lun("g", "a", GIB)
    sidecar = sidecar_of(rbd_engine)
    ask = sidecar._ask

    def ask_and_kill(call: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if call == "create_volume":
            ask(call, arguments)  # the answer is lost, the volume is made
            kill_sidecar(rbd_engine)
            raise sidecar._died()
        return ask(call, arguments)

    sidecar._ask = ask_and_kill  # type: ignore[assignment, method-assign]
    with pytest.raises(StorageUnreachableError, match="ended"):
        rbd_engine.create_lun("g", "b", GIB)
    sidecar._ask = ask  # type: ignore[method-assign]
    assert [lun.name for lun in rbd_engine.create_group("g").luns] == ["a"]
    assert rbd_engine.create_lun("g", "b", GIB).size_bytes == GIB
    backend = rbd_engine._backend
    images = backend._path._images  # type: ignore[attr-defined]
    there = images.call("sizes", volumes=[f"volume-{number}" for number in ()])
    assert there == {}
    assert len(backend.volumes()) == 2
    assert rbd_engine.reconcile() == []


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"options": {"rbd_poool": "x"}}, "has no option rbd_poool"),
        ({"options": {"rbd_store_chunk_size": "large"}}, "cannot be 'large'"),
        ({"options": {"rbd_secret_uuid": "x"}}, None),
        ({"volume_driver": "cinder.volume.drivers.nobody.Driver"}, "has no driver"),
    ],
)
def test_settings_that_are_wrong_are_told(
    rbd: dict[str, Any], tmp_path: Path, keys: dict[str, Any], sentence: str | None
) -> None:
    options = {**rbd["options"], **keys.get("options", {})}
    wrong = section(tmp_path, {**rbd, **keys, "options": options})
    if sentence is None:
        create_system(wrong)
        return
    with pytest.raises(ConfigurationError, match=sentence):
        create_system(wrong)


def test_a_cluster_that_is_not_there_is_told(rbd: dict[str, Any], tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text(
        "[global]\nmon host = 127.0.0.1:1\nclient mount timeout = 1\nrados mon op timeout = 1\n"
    )
    options = {
        **rbd["options"],
        "rbd_ceph_conf": str(conf),
        "rados_connection_retries": 1,
        "rados_connect_timeout": 1,
    }
    with pytest.raises(StorageUnreachableError, match="did not start"):
        create_system(section(tmp_path, {**rbd, "options": options}))


def test_an_interpreter_that_is_not_there_is_told(rbd: dict[str, Any], tmp_path: Path) -> None:
    wrong = section(tmp_path, {**rbd, "python": str(tmp_path / "none")})
    with pytest.raises(StorageUnreachableError, match="Cannot start the sidecar"):
        create_system(wrong)


def test_options_are_in_a_file_of_ours_alone(rbd_engine: ManagedEngine) -> None:
    rbd_engine.capacity()
    process = sidecar_of(rbd_engine)._process
    assert process is not None
    settings = rbd_engine.runtime_directory / "cinder.json"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert json.loads(settings.read_text())["options"]["rbd_user"] == "atoll"
    said = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert b"rbd_user" not in said
