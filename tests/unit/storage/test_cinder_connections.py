"""Cinder's words for connections, as its drivers and os-brick have them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from atoll.model.errors import StorageConflictError
from atoll.model.storage import Portal
from atoll.storage.backend import Chap
from atoll.storage.drivers.cinder.connections import chap, connectors, host_name, portals
from atoll.storage.drivers.cinder.remembered import Connection
from atoll.storage.drivers.cinder.settings import Settings

DRIVER = "cinder.volume.drivers.pure.PureFCDriver"
ESX1, ESX2 = "iqn.1998-01.com.vmware:esx1", "iqn.1998-01.com.vmware:esx2"
PORT1, PORT2 = "naa.2100000e1e30acfc", "naa.2100000e1e30acfd"


def connection(kind: str, data: dict[str, Any]) -> Connection:
    return Connection("0" * 32, "1" * 32, {"host": "esx1"}, kind=kind, data=data)


def test_one_iscsi_portal() -> None:
    data = {"target_portal": "10.0.0.1:3260", "target_iqn": "iqn.x:array", "target_lun": 7}
    assert portals([connection("iscsi", data)]) == (Portal("10.0.0.1", 3260, "iqn.x:array", 7),)


def test_several_iscsi_portals_each_once() -> None:
    data = {
        "target_portal": "10.0.0.1:3260",
        "target_iqn": "iqn.x:a",
        "target_lun": 7,
        "target_portals": ["10.0.0.1:3260", "[fd00::1]:3260"],
        "target_iqns": ["iqn.x:a", "iqn.x:b"],
        "target_luns": [7, 8],
    }
    twice = [connection("iscsi", data)] * 2
    assert portals(twice) == (
        Portal("10.0.0.1", 3260, "iqn.x:a", 7),
        Portal("fd00::1", 3260, "iqn.x:b", 8),
    )


@pytest.mark.parametrize(
    "data",
    [
        {"target_wwn": ["500A098280FEEBA5", "50:0a:09:82:90:fe:eb:a5"], "target_lun": 3},
        {"target_wwns": ["500a098280feeba5", "500a098290feeba5"], "target_luns": [3, 3]},
    ],
)
def test_fibre_channel_ports_have_no_number(data: dict[str, Any]) -> None:
    ports = "naa.500a098280feeba5", "naa.500a098290feeba5"
    assert portals([connection("fibre_channel", data)]) == tuple(
        Portal(port, 0, port, 3) for port in ports
    )


def test_one_fibre_channel_port_may_come_as_a_word() -> None:
    data = {"target_wwn": "500a098280feeba5", "target_lun": 3}
    (portal,) = portals([connection("fibre_channel", data)])
    assert portal.lun_number == 3


def test_what_hosts_cannot_reach_is_refused() -> None:
    with pytest.raises(StorageConflictError, match="nvmeof"):
        portals([connection("nvmeof", {})])


def test_chap_is_what_the_array_asks_for() -> None:
    asked = {"auth_method": "CHAP", "auth_username": "u", "auth_password": "p" * 12}
    assert chap(asked) == Chap("u", "p" * 12)
    assert chap({}) is None


def test_ports_that_no_host_has_are_hosts_of_their_own() -> None:
    settings = Settings(volume_driver=DRIVER)
    found = connectors(settings, [ESX2, ESX1, PORT1])
    assert len(found) == 3
    assert {each.get("initiator") for each in found.values()} == {ESX1, ESX2, None}
    assert [each["wwpns"] for each in found.values() if "wwpns" in each] == [["2100000e1e30acfc"]]
    assert all(name == each["host"] for name, each in found.items())


def test_ports_of_a_host_are_one_connector() -> None:
    settings = Settings(volume_driver=DRIVER, hosts={"esx1": (ESX1, PORT1, PORT2)})
    assert list(connectors(settings, [PORT2, PORT1])) == ["esx1"]
    found = connectors(settings, [PORT1, ESX1])["esx1"]
    assert (found["initiator"], found["wwpns"]) == (ESX1, ["2100000e1e30acfc"])


def test_host_names_are_short_plain_and_differ() -> None:
    names = [host_name(each) for each in (ESX1, ESX2, PORT1, "iqn.1998-01.com.vmware:a_b:c%")]
    assert len(set(names)) == 4
    assert all(len(name) <= 23 and name.replace("-", "").isalnum() for name in names)
    assert names[0].startswith("esx1-")


@pytest.mark.parametrize(
    "keys",
    [
        {"hosts": {"a": (ESX1,), "b": (ESX1,)}},
        {"hosts": {"a": (ESX1, ESX2)}},
        {"options": {"san_login": "x"}, "option_files": {"san_login": Path("/x")}},
        {"volume_driver": "rbd; rm"},
        {"surprise": 1},
    ],
)
def test_settings_that_cannot_be_meant(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"volume_driver": DRIVER, **keys})
