"""One farm over two simulators: Atoll's own, and govmomi's vcsim, which nobody here wrote.

Everything is changed with the stock pyVmomi client, so that both are asked the same.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim

from atoll.vsphere.client import VCenterSettings
from vsphere_site import simulated_site

GOVMOMI = Path("/usr/share/gocode/src/github.com/vmware/govmomi/simulator")
VCSIM_SOURCE = Path(__file__).with_name("vcsim")


class Farm:
    """A vCenter to be followed, and a person at its client who changes it."""

    def __init__(self, settings: VCenterSettings) -> None:
        self.settings = settings
        self._client = SmartConnect(
            host=settings.host,
            port=settings.port,
            user=settings.user,
            pwd=settings.password,
            disableSslCertValidation=True,
        )

    def close(self) -> None:
        Disconnect(self._client)

    def vms(self) -> dict[str, str]:
        """Instance UUIDs by name."""
        return {vm.name: vm.config.instanceUuid for vm in self._all(vim.VirtualMachine)}

    def running(self) -> tuple[str, str]:
        """Name and instance UUID of a VM that runs and that another host could run."""
        for vm in self._all(vim.VirtualMachine):
            if vm.runtime.powerState == "poweredOn" and self._others(vm):
                return vm.name, vm.config.instanceUuid
        raise AssertionError("no VM can move")

    def move(self, name: str) -> str:
        """vMotion to another host, and its name."""
        vm = self._vm(name)
        target = self._others(vm)[0]
        self._do(vm.RelocateVM_Task(vim.vm.RelocateSpec(host=target)))
        return str(target.name)

    def power(self, name: str, on: bool) -> None:
        vm = self._vm(name)
        self._do(vm.PowerOnVM_Task() if on else vm.PowerOffVM_Task())

    def snapshot(self, name: str, snapshot: str) -> None:
        self._do(self._vm(name).CreateSnapshot_Task(snapshot, "", False, False))

    def remove_snapshots(self, name: str) -> None:
        self._do(self._vm(name).RemoveAllSnapshots_Task())

    def rename(self, name: str, new_name: str) -> None:
        self._do(self._vm(name).Rename_Task(new_name))

    def unregister(self, name: str) -> str:
        """Take a VM that is off out of the inventory; the path to register it from."""
        vm = self._vm(name)
        path = str(vm.config.files.vmPathName)
        vm.UnregisterVM()
        return path

    def register(self, path: str, name: str) -> None:
        """Register a VM in the first host's cluster."""
        host = next(iter(self._all(vim.HostSystem)))
        folder = self._client.content.rootFolder.childEntity[0].vmFolder
        pool = host.parent.resourcePool
        self._do(folder.RegisterVM_Task(path, name, False, pool, host))

    def end_other_sessions(self) -> None:
        """Terminate every session but the person's own."""
        manager = self._client.content.sessionManager
        own = manager.currentSession.key
        manager.TerminateSession([each.key for each in manager.sessionList if each.key != own])

    def _all(self, kind: Any) -> list[Any]:
        content = self._client.content
        view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
        found = list(view.view)
        view.DestroyView()
        return found

    def _vm(self, name: str) -> Any:
        return next(vm for vm in self._all(vim.VirtualMachine) if vm.name == name)

    def _others(self, vm: Any) -> list[Any]:
        """Hosts that have mounted all of the VM's datastores and do not run it."""
        needed = {store._moId for store in vm.datastore}
        return [
            host
            for host in self._all(vim.HostSystem)
            if host._moId != vm.runtime.host._moId
            and needed <= {store._moId for store in host.datastore}
        ]

    def _do(self, task: Any) -> None:
        WaitForTask(task, si=self._client)


@contextmanager
def simulator_farm(directory: Path) -> Iterator[Farm]:
    """Atoll's own simulator."""
    with simulated_site(directory) as site:
        farm = Farm(site.settings())
        yield farm
        farm.close()


def build_vcsim(binary: Path) -> str | None:
    """Build vcsim from Debian's packages; why it cannot be had, None when it is there."""
    if shutil.which("go") is None or not GOVMOMI.exists():
        return "vcsim needs golang-go and golang-github-vmware-govmomi-dev"
    done = subprocess.run(
        ["go", "build", "-o", str(binary), "."],
        cwd=VCSIM_SOURCE,
        env={
            "GO111MODULE": "off",
            "GOPATH": "/usr/share/gocode",
            "GOCACHE": str(Path.home() / ".cache/go-build"),
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return None


@contextmanager
def vcsim_farm(binary: Path) -> Iterator[Farm]:
    """govmomi's simulator: a cluster of three hosts, a host by itself, four VMs."""
    with subprocess.Popen(
        [str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            host, _, port = process.stdout.readline().strip().rpartition(":")
            settings = VCenterSettings(host, "user", "password", port=int(port), insecure=True)
            farm = Farm(settings)
            yield farm
            farm.close()
        finally:
            process.stdin.close()  # ends it
            process.wait(60)
