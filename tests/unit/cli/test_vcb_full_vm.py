"""Which run is exported, what disks are called, and what the catalog says."""

from types import SimpleNamespace
from typing import Any

import pytest

from atoll.cli.vcb import newest
from atoll.cli.vcb.catalog import FOLDER, Origin, catalog_text, parse_catalog, unmount_text
from atoll.cli.vcb.full_vm import address, chosen_disks
from atoll.cli.vcb.options import Kind
from atoll.island.served import ServedDisk, ServedVm
from atoll.model.consistency import Consistency
from atoll.model.errors import (
    ConfigurationError,
    NotFoundInPointError,
    RepositoryKeyError,
    UnknownPointError,
)
from atoll.model.inventory import VirtualMachine
from repository_parts import MemoryDisk

UUID = "50000000-0000-4000-8000-000000000001"
DB1 = VirtualMachine(
    moref="vm-1",
    instance_uuid=UUID,
    name='my "db"\n1',
    host="esx1",
    powered_on=True,
    template=False,
    guest_os="Debian",
    disks=(),
    has_snapshot=False,
    vmx_path="[gold] db1/db1.vmx",
    bios_uuid="42",
)


def disk(key: int, path: str) -> ServedDisk:
    return ServedDisk(key, "", path, 512, lambda: MemoryDisk(bytes(512)))


def served(*disks: ServedDisk) -> ServedVm:
    return ServedVm("db1", UUID, "r1", 0.0, Consistency.CRASH, "Debian", dict, disks)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (2000, "scsi0:0"),
        (2017, "scsi1:1"),
        (3001, "ide0:1"),
        (3002, "ide1:0"),
        (16030, "sata1:0"),
        (31001, "nvme0:1"),
        (7, "disk7:0"),
    ],
)
def test_addresses(key: int, name: str) -> None:
    assert address(disk(key, "[gold] db1/db1.vmdk")) == name


def test_disks_are_left_out_by_address_or_name() -> None:
    first, second = disk(2000, "[gold] db1/db1.vmdk"), disk(2001, "[silver] db1/data.vmdk")
    vm = served(first, second)
    assert chosen_disks(vm, frozenset()) == [first, second]
    assert chosen_disks(vm, frozenset({"scsi0:1"})) == [first]
    assert chosen_disks(vm, frozenset({"db1.vmdk"})) == [second]
    with pytest.raises(NotFoundInPointError, match=r"no disk log\.vmdk to leave out, only scsi0:0"):
        chosen_disks(vm, frozenset({"log.vmdk"}))


def test_the_catalog_has_one_line_for_each_thing_whatever_a_vm_is_called() -> None:
    origin = Origin("r1", 0.0, "crash")
    text = catalog_text(
        DB1, origin, {"scsi0:0": ("scsi0-0-0-db1.vmdk", "[gold] db1/db1.vmdk")}, ("db1.vmx",)
    )
    lines = dict(line.split("= ", 1) for line in text.splitlines())
    assert lines["state"] == "poweredOn"
    assert lines["display_name"] == '"my _db__1"'
    assert lines["disk.scsi0:0.filename"] == '"scsi0-0-0-db1.vmdk"'
    assert lines["disk.scsi0:0.diskname"] == '"[gold] db1/db1.vmdk"'
    assert lines["config.vmx"] == '"[gold] db1/db1.vmx"'
    assert lines["config0.filename"] == '"db1.vmx"'
    assert lines["atoll.run"] == '"r1"'
    assert 'volume2= "/b"' in unmount_text(Kind.FILE, DB1, origin, ["/a", "/b"])


def test_a_catalog_is_read_as_it_was_written_and_as_people_change_it() -> None:
    origin = Origin("r1", 0.0, "crash")
    disks = {"scsi0:0": ("scsi0-0-0-db1.vmdk", "[gold] db1/db1.vmdk")}
    home = {FOLDER: "/Datacenters/lab/vm"}
    lines = parse_catalog(catalog_text(DB1, origin, disks, ("db1.vmx",), home))
    assert lines["state"] == "poweredOn"
    assert lines["disk.scsi0:0.diskname"] == "[gold] db1/db1.vmdk"
    assert lines["folderpath"] == "/Datacenters/lab/vm"
    assert next(iter(lines)) == "version"
    text = 'host=esx2\n\n# host= "esx3"\nresourcepool = "/a b/c"\nname\ndisplay_name= ""\n'
    assert parse_catalog(text) == {"host": "esx2", "resourcepool": "/a b/c", "display_name": ""}


def site(monkeypatch: pytest.MonkeyPatch, runs: list[tuple[str, str]], repository: Any) -> Any:
    """A site whose storage has runs, oldest first, each with one VM; its repository as given."""
    found = [
        SimpleNamespace(
            name=name,
            certificate=SimpleNamespace(vms=[SimpleNamespace(name="old", instance_uuid=uuid)]),
        )
        for name, uuid in runs
    ]
    monkeypatch.setattr(newest, "captured_runs", lambda engine: found)
    return SimpleNamespace(engine=lambda: None, repository=repository)


def never() -> Any:
    raise AssertionError("the repository is not needed")


def holding(*points: tuple[str, str, float]) -> Any:
    made = [
        SimpleNamespace(run=run, instance_uuid=uuid, created_at=at, vm="old")
        for run, uuid, at in points
    ]
    return lambda: SimpleNamespace(points=lambda: made)


def test_the_newest_run_with_the_vm_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [("r1", UUID), ("r2", UUID), ("r3", "another")]
    assert newest.newest(site(monkeypatch, runs, never), DB1) == newest.Source("r2", "old")


def test_without_snapshots_the_newest_point_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    points = holding(("p1", UUID, 1.0), ("p3", UUID, 3.0), ("p2", UUID, 2.0), ("p4", "x", 4.0))
    found = newest.newest(site(monkeypatch, [("r3", "another")], points), DB1)
    assert found == newest.Source("old@p3", "old")


def test_a_vm_that_was_never_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise ConfigurationError("no section [repository]")

    with pytest.raises(UnknownPointError, match="Neither the storage nor the repository has"):
        newest.newest(site(monkeypatch, [], holding(("p1", "x", 1.0))), DB1)
    with pytest.raises(UnknownPointError, match="no repository to look in"):
        newest.newest(site(monkeypatch, [], none), DB1)

    def locked() -> Any:
        raise RepositoryKeyError("The key does not open it.")

    with pytest.raises(RepositoryKeyError):
        newest.newest(site(monkeypatch, [], locked), DB1)
