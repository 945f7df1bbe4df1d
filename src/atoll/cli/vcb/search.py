"""Finding VMs as `-a` and `-s` name them."""

from collections.abc import Sequence

from atoll.model.errors import ConfigurationError, UnknownVmError
from atoll.model.inventory import VirtualMachine


def find(vms: Sequence[VirtualMachine], search: str) -> list[VirtualMachine]:
    """Those that fit `any:`, `name:`, `uuid:`, `moref:` or `powerstate:`, by name.

    `uuid:` is the BIOS UUID, as VCB has it, or the instance UUID; dashes,
    spaces and case do not matter. ConfigurationError for another kind of search.
    """
    kind, _, wanted = search.partition(":")
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
            raise ConfigurationError(
                "Atoll does not know the guests' addresses; name the VM by name:, uuid: or moref:."
            )
        case _:
            raise ConfigurationError(
                f"{search!r} is no search; write any:, name:NAME, uuid:UUID, moref:ID or "
                "powerstate:on|off."
            )
    return sorted(found, key=lambda vm: (vm.name, vm.moref))


def find_one(vms: Sequence[VirtualMachine], search: str) -> VirtualMachine:
    """The one VM that fits; UnknownVmError when none does or several do."""
    found = find(vms, search)
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


def lines(vm: VirtualMachine) -> tuple[str, ...]:
    """What vcbVmName says of a VM; the address is always left empty."""
    return (
        "Found VM:",
        f"moref:{vm.moref}",
        f"name:{vm.name}",
        f"uuid:{vm.bios_uuid}",
        "ipaddr:",
    )


def _digits(uuid: str) -> str:
    return uuid.lower().replace("-", "").replace(" ", "")
