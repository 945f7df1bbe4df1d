"""The lab's way to change the simulated site: JSON lines over a UNIX socket, client side."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll_lab.errors import LabError

SOCKET = "control.sock"
ENDPOINT = "endpoint.json"
_TIMEOUT_SECONDS = 120.0


class ControlError(LabError):
    """The simulator refused or does not run; the message says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running simulator is. `ca_file` verifies it, `thumbprint` is its SHA-256."""

    host: str
    port: int
    ca_file: str
    thumbprint: str
    pid: int


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk of a VM to add; `datastore` is a name, `path` is inside it, `kind` `flat` or `rdm`.

    `lun` is the LUN (`naa.…`) of an `rdm`, in `compatibility` mode (or `virtualMode`).
    """

    key: int
    label: str
    path: str
    size_bytes: int
    datastore: str
    mode: str = "persistent"
    kind: str = "flat"
    compatibility: str = "physicalMode"
    lun: str = ""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host as the simulator knows it: LUNs (`naa.…`) it sees, datastores it has mounted."""

    moid: str
    name: str
    iqn: str
    portals: tuple[str, ...]
    luns: tuple[str, ...]
    datastores: tuple[str, ...]


class Control:
    """Commands to the simulator running in `directory`. Every call raises ControlError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def endpoint(self) -> Endpoint:
        """Where it serves."""
        try:
            return Endpoint(**json.loads((self._directory / ENDPOINT).read_text()))
        except FileNotFoundError as error:
            raise ControlError(f"No simulator was ever started in {self._directory}") from error

    def ping(self) -> None:
        """Return when it answers."""
        self._ask("ping")

    def hosts(self) -> list[HostStatus]:
        """The hosts and what they see."""
        return [
            HostStatus(
                moid=each["moid"],
                name=each["name"],
                iqn=each["iqn"],
                portals=tuple(each["portals"]),
                luns=tuple(each["luns"]),
                datastores=tuple(each["datastores"]),
            )
            for each in self._ask("hosts")
        ]

    def add_portal(self, host: str, portal: str) -> None:
        """Configure a send-targets portal (`address:port`) on a host; a rescan makes it count."""
        self._ask("add_portal", host=host, portal=portal)

    def rescan(self, host: str) -> None:
        """What RescanAllHba and RescanVmfs do."""
        self._ask("rescan", host=host)

    def add_vm(
        self,
        name: str,
        datastore: str,
        vmx_path: str,
        disks: Sequence[NewDisk],
        host: str,
        guest_os: str,
        instance_uuid: str | None = None,
        powered_on: bool = False,
        template: bool = False,
        manager: str | None = None,
    ) -> str:
        """Register a VM and return its moref; the same name with the same UUID again changes nothing.

        `datastore` and `host` are names, `vmx_path` is inside the datastore.
        """
        return str(
            self._ask(
                "add_vm",
                name=name,
                datastore=datastore,
                vmx_path=vmx_path,
                disks=[asdict(disk) for disk in disks],
                host=host,
                guest_os=guest_os,
                instance_uuid=instance_uuid,
                powered_on=powered_on,
                template=template,
                manager=manager,
            )
        )

    def remove_vm(self, name: str) -> None:
        """Forget a VM; absent is success."""
        self._ask("remove_vm", name=name)

    def set_power(self, name: str, on: bool) -> None:
        """Record that a VM's guest runs or not; the power hook is not called."""
        self._ask("set_power", name=name, on=on)

    def change_vm(self, name: str, changes: dict[str, Any]) -> None:
        """Set fields of a VM's record by path, such as `suspended`, `tools.quiesces`, `deltas.leave`.

        They are those of `atoll_lab.vcenter.state.VmState`.
        """
        self._ask("change_vm", name=name, changes=changes)

    def rename_datastore(self, name: str, new_name: str) -> None:
        """Give a datastore another name."""
        self._ask("rename_datastore", name=name, new_name=new_name)

    def add_host(self, name: str, iqn: str, cluster: str = "production") -> None:
        """Add a host that sees nothing yet."""
        self._ask("add_host", name=name, iqn=iqn, cluster=cluster)

    def set_host_connected(self, name: str, connected: bool) -> None:
        """Let vCenter lose contact with a host, or find it again; its VMs run on meanwhile."""
        self._ask("set_host_connected", name=name, connected=connected)

    def forbid(self, moref: str, path: str) -> None:
        """Take the right to read a property path of an object from everybody."""
        self._ask("forbid", moref=moref, path=path)

    def allow_all(self) -> None:
        """Give back every right that `forbid` took."""
        self._ask("allow_all")

    def vmotion(self, name: str, host: str | None = None, datastore: str | None = None) -> None:
        """Move a VM at once to a host, to a datastore, or both."""
        self._ask("vmotion", name=name, host=host, datastore=datastore)

    def inject_fault(
        self,
        method: str,
        target: str | None = None,
        fault: str | None = None,
        count: int = 1,
        delay_seconds: float = 0.0,
        when: str = "before",
    ) -> None:
        """Make calls of `method` fail; see atoll_lab.vcenter.faults.FaultRule."""
        self._ask(
            "inject_fault",
            method=method,
            target=target,
            fault=fault,
            count=count,
            delay_seconds=delay_seconds,
            when=when,
        )

    def faults(self) -> list[dict[str, Any]]:
        """Every rule with how often it `fired`."""
        return list(self._ask("faults"))

    def clear_faults(self) -> None:
        """Remove every rule."""
        self._ask("clear_faults")

    def set_task_seconds(self, method: str, seconds: float) -> None:
        """How long tasks of a method take before they do their work."""
        self._ask("set_task_seconds", method=method, seconds=seconds)

    def set_lease(self, seconds: float, direct: bool = False) -> None:
        """How long leases of imports live from now on without a sign.

        With `direct` their URLs name this server by address with its certificate's SHA-1, as
        those of ESX hosts do, and not `*`.
        """
        self._ask("set_lease", seconds=seconds, direct=direct)

    def imported_disk(self, vm: str, key: int) -> Path:
        """The raw file with the content of an imported VM's disk; the VM by name or id."""
        return Path(self._ask("imported_disk", vm=vm, key=key))

    def expire_sessions(self) -> int:
        """Let every session time out; how many there were."""
        return int(self._ask("expire_sessions"))

    def logins(self) -> int:
        """How many logins succeeded since the start."""
        return int(self._ask("logins"))

    def shutdown(self) -> None:
        """Stop the simulator; returns when it serves no more and its port is free."""
        self._ask("shutdown")

    def _ask(self, operation: str, **arguments: Any) -> Any:
        request = json.dumps({"op": operation, **arguments}).encode() + b"\n"
        try:
            with (
                reachable(self._directory) as path,
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel,
            ):
                channel.settimeout(_TIMEOUT_SECONDS)
                channel.connect(path)
                channel.sendall(request)
                with channel.makefile("rb") as lines:
                    line = lines.readline()
                    if operation == "shutdown":
                        lines.read()
        except OSError as error:
            raise ControlError(
                f"The vCenter simulator in {self._directory} does not answer: {error}"
            ) from error
        if not line:
            raise ControlError(f"The simulator closed the channel during {operation}")
        answer = json.loads(line)
        if "error" in answer:
            raise ControlError(str(answer["error"]))
        return answer["result"]


@contextmanager
def reachable(directory: Path) -> Iterator[str]:
    """A short path of the control socket: those of UNIX sockets end at 107 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
