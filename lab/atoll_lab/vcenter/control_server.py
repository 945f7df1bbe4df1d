"""The simulator's side of the control socket."""

import json
import logging
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyVmomi import vmodl

from atoll_lab.vcenter.control import SOCKET, reachable
from atoll_lab.vcenter.faults import FaultRule
from atoll_lab.vcenter.objects.base import Call
from atoll_lab.vcenter.sessions import Session
from atoll_lab.vcenter.site import Site
from atoll_lab.vcenter.state import DiskState, HostState, VmState, new_uuid

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05


class ControlServer(socketserver.ThreadingUnixStreamServer):
    """Answers Control. `on_shutdown` is called after the answer to `shutdown` is on its way."""

    daemon_threads = True

    def __init__(self, directory: Path, site: Site, on_shutdown: Callable[[], None]) -> None:
        # A socket left by a killed run would be in the way; two servers cannot share the port
        # that was bound before this, so nobody else is using it.
        (directory / SOCKET).unlink(missing_ok=True)
        with reachable(directory) as path:
            super().__init__(path, _Handler)
        self.operations = Operations(site)
        self.on_shutdown = on_shutdown
        self.gone = threading.Event()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="control", daemon=True
        )

    def start(self) -> None:
        """Serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        self.gone.set()


class _Handler(socketserver.StreamRequestHandler):
    server: ControlServer

    def handle(self) -> None:
        for line in self.rfile:
            request = json.loads(line)
            operation = request.pop("op")
            self._send(self._run(operation, request))
            if operation == "shutdown":
                self.server.on_shutdown()
                # The client waits for the end of this connection.
                self.server.gone.wait()
                return

    def _run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            function = getattr(self.server.operations, f"do_{operation}", None)
            if function is None:
                return {"error": f"There is no operation {operation}"}
            return {"result": function(**arguments)}
        except vmodl.MethodFault as fault:
            return {"error": fault.msg}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            _log.debug("%s failed", operation, exc_info=True)
            return {"error": str(error.args[0]) if error.args else repr(error)}

    def _send(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class Operations:
    """One method an operation, named `do_…`; results are JSON."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def do_ping(self) -> str:
        return "pong"

    def do_shutdown(self) -> str:
        return "stopping"

    def do_hosts(self) -> list[dict[str, Any]]:
        with self._site.registry.reading():
            return [
                {
                    "moid": host.moid,
                    "name": host.state.name,
                    "iqn": host.state.iqn,
                    "portals": host.state.portals,
                    "luns": [lun.naa for lun in host.state.luns],
                    "datastores": [
                        self._site.datastore(ref._moId).state.name for ref in host.datastores()
                    ],
                }
                for host in self._site.hosts()
            ]

    def do_add_portal(self, host: str, portal: str) -> None:
        self._site.host_named(host).storage.add_portal(portal)

    def do_rescan(self, host: str) -> None:
        call = Call(Session(key="control", user="control"), "")
        storage = self._site.host_named(host).storage
        storage.rescan_all(call)
        storage.rescan_vmfs(call)

    def do_add_vm(
        self,
        name: str,
        datastore: str,
        vmx_path: str,
        disks: list[dict[str, Any]],
        host: str,
        guest_os: str,
        instance_uuid: str | None,
        powered_on: bool,
        template: bool,
        manager: str | None,
    ) -> str:
        site = self._site
        with site.change():
            for vm in site.vms():
                if vm.state.name == name:
                    if instance_uuid == vm.state.instance_uuid:
                        return vm.moid
                    raise ValueError(f"There is a VM {name} already")
            home = site.datastore_named(datastore)
            state = VmState(
                moid=site.new_id("vm"),
                name=name,
                instance_uuid=instance_uuid or new_uuid(),
                bios_uuid=new_uuid(),
                host=site.host_named(host).moid,
                datastore=home.moid,
                vmx_path=vmx_path,
                guest_os=guest_os,
                disks=[
                    DiskState(**{**disk, "datastore": site.datastore_named(disk["datastore"]).moid})
                    for disk in disks
                ],
                powered_on=powered_on,
                template=template,
                manager=manager,
            )
            for moid in {state.datastore, *(disk.datastore for disk in state.disks)}:
                if not site.datastore(moid).reachable_from(state.host):
                    raise ValueError(f"{host} has not mounted {site.datastore(moid).state.name}")
            site.add_vm(state)
            return state.moid

    def do_remove_vm(self, name: str) -> None:
        with self._site.change():
            for vm in self._site.vms():
                if vm.state.name == name:
                    self._site.remove_vm(vm.moid)
                    self._site.state.shelf.pop(vm.vmx_path(), None)

    def do_set_power(self, name: str, on: bool) -> None:
        with self._site.change():
            self._site.vm_named(name).state.powered_on = on

    def do_change_vm(self, name: str, changes: dict[str, Any]) -> None:
        with self._site.change():
            state = self._site.vm_named(name).state
            for path, value in changes.items():
                head, _, field = path.rpartition(".")
                part = getattr(state, head) if head else state
                if not hasattr(part, field):
                    raise ValueError(f"A VM has no {path}")
                setattr(part, field, value)

    def do_rename_datastore(self, name: str, new_name: str) -> None:
        self._site.datastore_named(name).rename(new_name)

    def do_add_host(self, name: str, iqn: str, cluster: str) -> None:
        site = self._site
        with site.change():
            if any(host.name == name for host in site.state.hosts):
                raise ValueError(f"There is a host {name} already")
            site.add_host(HostState(site.new_id("host"), name, iqn, cluster))

    def do_set_host_connected(self, name: str, connected: bool) -> None:
        with self._site.change():
            self._site.host_named(name).state.connected = connected

    def do_forbid(self, moref: str, path: str) -> None:
        with self._site.registry.changing():
            self._site.registry.forbidden.add((moref, path))

    def do_allow_all(self) -> None:
        with self._site.registry.changing():
            self._site.registry.forbidden.clear()

    def do_vmotion(self, name: str, host: str | None, datastore: str | None) -> None:
        site = self._site
        site.vm_named(name).move(
            site.host_named(host).moid if host else None,
            site.datastore_named(datastore).moid if datastore else None,
        )

    def do_inject_fault(self, **rule: Any) -> None:
        self._site.faults.inject(FaultRule(**rule))

    def do_faults(self) -> list[dict[str, Any]]:
        return self._site.faults.report()

    def do_clear_faults(self) -> None:
        self._site.faults.clear()

    def do_set_task_seconds(self, method: str, seconds: float) -> None:
        self._site.tasks.seconds[method] = seconds

    def do_set_lease(self, seconds: float, direct: bool) -> None:
        self._site.lease_seconds = seconds
        self._site.lease_host = self._site.direct_host if direct else ("*", "")

    def do_imported_disk(self, vm: str, key: int) -> str:
        known = [each for each in self._site.vms() if vm in (each.moid, each.state.name)]
        for disk in known[0].state.disks if known else ():
            if disk.key == key and disk.image:
                return str(self._site.disk_directory(known[0].moid) / disk.image)
        raise ValueError(f"VM {vm} has no imported disk {key}")

    def do_expire_sessions(self) -> int:
        ended = self._site.sessions.expire_all()
        for session in ended:
            self._site.registry.end_session(session.key)
        return len(ended)

    def do_logins(self) -> int:
        return self._site.sessions.logins
