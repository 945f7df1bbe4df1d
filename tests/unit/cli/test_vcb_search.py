"""VMs by the names that VCB knows, and what is said of them."""

import pytest

from atoll.cli.vcb.search import find, find_one, lines
from atoll.model.errors import ConfigurationError, UnknownVmError
from atoll.model.inventory import Inventory, VirtualMachine


def machine(number: int, name: str, *, on: bool = True) -> VirtualMachine:
    return VirtualMachine(
        moref=f"vm-{number}",
        instance_uuid=f"50000000-0000-4000-8000-00000000000{number}",
        name=name,
        host="esx1",
        powered_on=on,
        template=False,
        guest_os="Debian",
        disks=(),
        has_snapshot=False,
        vmx_path=f"[gold] {name}/{name}.vmx",
        bios_uuid=f"42000000-0000-4000-8000-00000000ab0{number}",
    )


DB1, APP1, TWIN = machine(1, "db1"), machine(2, "app1", on=False), machine(3, "db1")


class VCenter:
    def inventory(self) -> Inventory:
        return Inventory((), (), (DB1, APP1, TWIN), ())

    def guest_addresses(self) -> dict[str, str]:
        return {"vm-1": "10.0.0.1", "vm-3": "fd00::3"}


VCENTER = VCenter()


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("any:", [APP1, DB1, TWIN]),
        ("Any", [APP1, DB1, TWIN]),
        ("Any:*", [APP1, DB1, TWIN]),
        ("name:db1", [DB1, TWIN]),
        ("name:DB1", []),
        ("uuid:42000000-0000-4000-8000-00000000AB02", [APP1]),
        ("uuid:42 00 00 00 00 00 40 00-80 00 00 00 00 00 ab 02", [APP1]),
        ("uuid:50000000-0000-4000-8000-000000000003", [TWIN]),
        ("uuid:", []),
        ("moref:vm-1", [DB1]),
        ("ipaddr:10.0.0.1", [DB1]),
        ("ipaddr:FD00:0::3", [TWIN]),
        ("ipaddr:10.0.0.9", []),
        ("ipaddr:", []),
        ("powerstate:off", [APP1]),
        ("powerstate:on", [DB1, TWIN]),
    ],
)
def test_searches(search: str, found: list[VirtualMachine]) -> None:
    assert find(VCENTER, search) == found


def test_one_is_wanted() -> None:
    assert find_one(VCENTER, "name:app1") is APP1
    with pytest.raises(UnknownVmError, match="2 VMs fit name:db1: vm-1, vm-3; name one by moref:"):
        find_one(VCENTER, "name:db1")
    with pytest.raises(UnknownVmError, match="no VM that fits name:gone"):
        find_one(VCENTER, "name:gone")


def test_what_is_no_search() -> None:
    for search in ("db1", "powerstate:maybe", ""):
        with pytest.raises(ConfigurationError, match="is no search"):
            find(VCENTER, search)


def test_the_lines_that_scripts_take_apart() -> None:
    assert lines(DB1, "10.0.0.1") == (
        "Found VM:",
        "moref:vm-1",
        "name:db1",
        "uuid:42000000-0000-4000-8000-00000000ab01",
        "ipaddr:10.0.0.1",
    )
