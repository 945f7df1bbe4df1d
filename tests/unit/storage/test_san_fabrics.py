"""What LIO is told, over a directory that stands for its configuration in the kernel."""

import os
from pathlib import Path

import pytest

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.san.helper import configfs, fabrics, targets
from atoll.storage.drivers.san.helper.backstores import Backstore, Identity
from atoll.storage.drivers.san.helper.fabrics import LOOPBACK, QLA2XXX, Access, wwpn
from atoll.storage.drivers.san.helper.targets import Exported, Ports

PORTS = ("21:00:00:24:ff:12:34:56", "naa.21000024ff123457")
HBA = "naa.10000090fa000001"


@pytest.fixture
def lio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain directory: attributes come into being when they are written."""
    root = tmp_path / "target"
    (root / "core").mkdir(parents=True)
    (root / "iscsi").mkdir()
    (root / "qla2xxx").mkdir()
    hosts = tmp_path / "fc_host"
    for number, name in enumerate(("0x21000024ff123456", "0x21000024ff123457")):
        (hosts / f"host{number}").mkdir(parents=True)
        (hosts / f"host{number}" / "port_name").write_text(f"{name}\n")

    def write(path: Path, value: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)

    monkeypatch.setattr(configfs, "root", lambda: root)
    monkeypatch.setattr(configfs, "write", write)
    monkeypatch.setattr(fabrics, "FC_HOSTS", hosts)
    return root


def exported(*initiators: str, unit: int = 3) -> Exported:
    backstore = Backstore(
        "0123abcd", "9" * 32, "8" * 32, Path("/dev/dm-4"), Identity("8" * 32, "ATOLL", "LUN"), True
    )
    accesses = tuple(Access(initiator) for initiator in initiators)
    return Exported(backstore, "iqn.2026-11.org.atoll:s:g:l", unit, accesses)


def test_every_port_shows_the_lun_to_those_named(lio: Path) -> None:
    ports = Ports(("10.0.0.5:3260",), PORTS)
    assert list(targets.serve("0123abcd", "9" * 32, [exported(HBA)], ports)) == [
        "iqn.2026-11.org.atoll:s:g:l"
    ]
    for port in ("21:00:00:24:ff:12:34:56", "21:00:00:24:ff:12:34:57"):
        group = lio / "qla2xxx" / port / "tpgt_1"
        [backstore] = configfs.links(group / "lun" / "lun_3")
        assert backstore == lio / "core" / "fileio_0" / f"0123abcd.{'9' * 32}.{'8' * 32}"
        mapped = group / "acls" / "10:00:00:90:fa:00:00:01" / "lun_3"
        assert configfs.links(mapped) == [group / "lun" / "lun_3"]
        assert (mapped / "write_protect").read_text() == "0"
    assert os.listdir(lio / "iscsi") == []


def test_a_port_the_server_lacks_is_refused(lio: Path) -> None:
    ports = Ports(("10.0.0.5:3260",), ("21:00:00:24:ff:99:99:99",))
    with pytest.raises(StorageUnreachableError, match="it has 21000024ff123456, 21000024ff123457"):
        list(targets.serve("0123abcd", "9" * 32, [exported(HBA)], ports))
    assert os.listdir(lio / "qla2xxx") == []


@pytest.mark.parametrize(
    "name",
    ["naa.21000024FF123456", "0x21000024ff123456", "21:00:00:24:ff:12:34:56", "21000024ff123456"],
)
def test_port_names_are_read_however_written(name: str) -> None:
    assert wwpn(name) == "21000024ff123456"
    assert QLA2XXX.wwn(name) == "21:00:00:24:ff:12:34:56"
    assert LOOPBACK.wwn(name) == "naa.21000024ff123456"


@pytest.mark.parametrize("name", ["", "naa.", "naa.2100", "21:00:00:24:ff:12:34", "iqn.2026:x"])
def test_what_is_no_port_name_is_refused(name: str) -> None:
    with pytest.raises(StorageConflictError, match="no Fibre Channel port name"):
        wwpn(name)
