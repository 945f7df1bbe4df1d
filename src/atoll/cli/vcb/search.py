"""Finding VMs as `-a` and `-s` name them."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Protocol

from atoll.model.errors import ConfigurationError, UnknownVmError
from atoll.model.inventory import Inventory, VirtualMachine


class KnownVms(Protocol):
    """What of vCenter is searched."""

    def inventory(self) -> Inventory:
        """Its VMs."""
        ...

    def guest_addresses(self) -> Mapping[str, str]:
        """Addresses that guests tell, by moref."""
        ...


def find(vcenter: KnownVms, search: str) -> list[VirtualMachine]:
    """Those that fit `any:`, `name:`, `uuid:`, `moref:`, `ipaddr:` or `powerstate:`, by name.

    `uuid:` is the BIOS UUID, as VCB has it, or the instance UUID; dashes,
    spaces and case do not matter. ConfigurationError for another kind of search.
    """
    kind, _, wanted = search.partition(":")
    vms = vcenter.inventory().vms
    match kind.lower():
        case "any":
            found = list(vms)
        case "name":
            found = [vm for vm in vms if vm.name == wanted]
        case "uuid":
            key = _digits(wanted)
            found = [
                vm
                for vm in vms
                if key and key in {_digits(vm.bios_uuid), _digits(vm.instance_uuid)}
            ]
        case "moref":
            found = [vm for vm in vms if vm.moref == wanted]
        case "powerstate" if wanted in ("on", "off"):
            found = [vm for vm in vms if vm.powered_on == (wanted == "on")]
        case "ipaddr":
            address = _address(wanted)
            told = vcenter.guest_addresses()
            found = [vm for vm in vms if vm.moref in told and _address(told[vm.moref]) == address]
        case _:
            raise ConfigurationError(
                f"{search!r} is no search; write any:, name:NAME, uuid:UUID, moref:ID, "
                "ipaddr:ADDRESS or powerstate:on|off."
            )
    return sorted(found, key=lambda vm: (vm.name, vm.moref))


def find_one(vcenter: KnownVms, search: str) -> VirtualMachine:
    """The one VM that fits; UnknownVmError when none does or several do."""
    found = find(vcenter, search)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownVmError(
            f"vCenter has no VM that fits {search}; `vcbVmName -s any:` lists all."
        )
    raise UnknownVmError(
        f"{len(found)} VMs fit {search}: {', '.join(vm.moref for vm in found[:10])}; name one by "
        "moref:."
    )


def lines(vm: VirtualMachine, address: str) -> tuple[str, ...]:
    """What vcbVmName says of a VM; `address` is empty when its guest tells none."""
    return (
        "Found VM:",
        f"moref:{vm.moref}",
        f"name:{vm.name}",
        f"uuid:{vm.bios_uuid}",
        f"ipaddr:{address}",
    )


def _address(text: str) -> str:
    """An address in the one form of the several that it can be written in."""
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        return text.strip()


def _digits(uuid: str) -> str:
    return uuid.lower().replace("-", "").replace(" ", "")
