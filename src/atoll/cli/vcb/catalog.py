"""`catalog` and `unmount.dat`: lines of `name= "value"`, as VCB's catalog has them."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll.cli.vcb.options import Kind
from atoll.island.served import ServedVm
from atoll.model.inventory import VirtualMachine

FOLDER, POOL, POOLS = "folderpath", "resourcepool", ("resourcepool", "resource")
_LINE = re.compile(r"\s*([A-Za-z][\w.:-]*)\s*=\s*(.*?)\s*")


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that was exported, `taken_at` seconds since the epoch, and what it is worth."""

    run: str
    taken_at: float
    consistency: str

    @classmethod
    def of(cls, vm: ServedVm) -> "Origin":
        """That of a served VM."""
        return cls(vm.run, vm.taken_at, str(vm.consistency))


def catalog_text(
    vm: VirtualMachine,
    origin: Origin,
    disks: Mapping[str, tuple[str, str]],
    configuration: Sequence[str],
    home: Mapping[str, str] | None = None,
) -> str:
    """What was exported, for whoever restores it.

    `disks` are file and original place, `[datastore] path`, by address. `state`
    and `host` are those at the time of the export, and so is `home`, paths by FOLDER and POOL;
    `timestamp` is the run's.
    """
    directory = vm.vmx_path.rpartition("/")[0]
    rows = [
        ("display_name", vm.name),
        ("uuid", vm.bios_uuid),
        *(
            row
            for address, (name, path) in disks.items()
            for row in ((f"disk.{address}.filename", name), (f"disk.{address}.diskname", path))
        ),
        ("config.vmx", vm.vmx_path),
        ("config.suspenddir", directory),
        ("config.logdir", directory),
        *((f"config{number}.filename", name) for number, name in enumerate(configuration)),
        ("host", vm.host),
        *(home or {}).items(),
        ("timestamp", time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(origin.taken_at))),
        *_rows(vm, origin),
    ]
    state = "poweredOn" if vm.powered_on else "suspended" if vm.suspended else "poweredOff"
    return f"version= esx-3.0\nstate= {state}\n{_lines(rows)}"


def parse_catalog(text: str) -> dict[str, str]:
    """The lines of a catalog, without quotation marks; what is no such line is passed over."""
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        value = match[2]
        if len(value) >= 2 and value[0] == value[-1] == '"':
            value = value[1:-1]
        found[match[1]] = value
    return found


def unmount_text(
    kind: Kind, vm: VirtualMachine, origin: Origin, volumes: Sequence[str] = ()
) -> str:
    """What `-U` will take away, for people; the command itself looks at what is there."""
    rows = [("type", str(kind)), ("display_name", vm.name), *_rows(vm, origin)]
    rows += [(f"volume{number}", where) for number, where in enumerate(volumes, 1)]
    return _lines(rows)


def _rows(vm: VirtualMachine, origin: Origin) -> list[tuple[str, str]]:
    return [
        ("atoll.instance_uuid", vm.instance_uuid),
        ("atoll.run", origin.run),
        ("atoll.consistency", origin.consistency),
    ]


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    return "".join(f'{name}= "{_quoted(value)}"\n' for name, value in rows)


def _quoted(value: str) -> str:
    """One line without quotation marks, whatever a VM is called."""
    return "".join("_" if c == '"' or not c.isprintable() else c for c in value)
