"""What a VM registered from its copied VMX has to become."""

from typing import Any

from pyVmomi import vim

from atoll.vsphere.recovered_specs import Network, RecoveredDisk, adopted, moved

_Device = vim.vm.device
OFF = Network(connected=False, mapped={})


def disk(key: int, path: str) -> Any:
    return _Device.VirtualDisk(
        key=key,
        controllerKey=1000,
        unitNumber=key - 2000,
        capacityInKB=1024,
        backing=_Device.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode="persistent"),
    )


def card(key: int, network: str) -> Any:
    return _Device.VirtualVmxnet3(
        key=key,
        backing=_Device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network),
        connectable=_Device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=False
        ),
    )


def changes(spec: Any) -> list[tuple[str, int, str]]:
    return [
        (str(each.operation), each.device.key, getattr(each.device.backing, "fileName", ""))
        for each in spec.deviceChange
    ]


def test_a_disk_on_production_is_replaced_and_one_without_a_copy_taken_out() -> None:
    devices = [
        disk(2000, "[snap-a] x/x.vmdk"),
        disk(2001, "[b] x/x.vmdk"),
        disk(2002, "[c] c.vmdk"),
    ]
    paths = {2000: "[snap-a] x/x.vmdk", 2001: "[snap-b] x/x.vmdk"}
    spec = adopted(devices, paths, OFF, "mark", keep=False)
    assert changes(spec) == [
        ("remove", 2001, ""),
        ("add", -2001, "[snap-b] x/x.vmdk"),
        ("remove", 2002, ""),
    ]
    # Files are never touched: they may be production's.
    assert all(each.fileOperation is None for each in spec.deviceChange)
    settings = {each.key: each.value for each in spec.extraConfig}
    assert settings == {"atoll.recovery": "mark", "uuid.action": "create"}


def test_cards_are_off_kept_or_on_other_networks() -> None:
    def cards(network: Network) -> list[tuple[int, str, bool]]:
        devices = [card(4000, "prod"), card(4001, "backup")]
        adopted(devices, {}, network, "m", keep=True)
        return [
            (each.key, each.backing.deviceName, each.connectable.startConnected) for each in devices
        ]

    assert cards(OFF) == [(4000, "prod", False), (4001, "backup", False)]
    assert cards(Network(True, {})) == [(4000, "prod", True), (4001, "backup", True)]
    assert cards(Network(True, {"prod": "lab"})) == [(4000, "lab", True), (4001, "backup", False)]


def test_mappings_become_disks_where_they_are_moved_to() -> None:
    store = vim.Datastore("datastore-1")
    spec = moved(store, [RecoveredDisk(2000, "[local] x/x_2000.vmdk", raw=True)])
    (locator,) = spec.disk
    assert locator.diskId == 2000 and locator.datastore == spec.datastore == store
    assert isinstance(locator.diskBackingInfo, _Device.VirtualDisk.FlatVer2BackingInfo)
