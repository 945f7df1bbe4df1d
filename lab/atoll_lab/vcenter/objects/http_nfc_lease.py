"""An HttpNfcLease: the VM that is being imported, where its disks go, and until when.

Source: vSphere Web Services API, HttpNfcLease. A lease that nobody reports progress to ends with
an error by itself; one that ends badly takes its VM away.
"""

import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.state import DiskState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site


class HttpNfcLease(Managed):
    """Initializing, ready, then done or error. Change it under the registry's lock."""

    kind = vim.HttpNfcLease
    exports = False
    """Whether its disks are read and not sent."""

    def __init__(self, site: "Site", moid: str, session: str, ticket: str, seconds: float) -> None:
        """It can be used in its session alone; its VM waits for the time-out if that ends."""
        super().__init__(site, moid, session)
        self.ticket = ticket
        self.signs = 0
        """How often progress was reported, so that tests can wait for it."""
        self._seconds = seconds
        self._state = "initializing"
        self._error: Any = None
        self._vm = ""
        self._names: dict[int, str] = {}
        self._sent: set[int] = set()
        self._percent = 0
        self._timer: threading.Timer | None = None

    @property
    def live(self) -> bool:
        """Whether disks may be sent."""
        return self._state == "ready"

    @property
    def vm(self) -> str:
        """The id of its VM."""
        return self._vm

    def begin(self, vm: str, names: dict[int, str]) -> None:
        """It is ready; `names` are what its disks are called by key, `Controller0:1`."""
        with self.site.registry.changing():
            self._vm, self._names = vm, names
            self._state = "ready"
            self._wind()

    def fail(self, fault: Any) -> None:
        """It ends with an error, and its VM is gone with all that was sent. Done stays done."""
        with self.site.change():
            if self._state in ("done", "error"):
                return
            self._state, self._error = "error", fault
            self._unwind()
            if self._vm:
                path = self.site.vm(self._vm).vmx_path()
                self.site.remove_vm(self._vm)
                self.site.state.shelf.pop(path, None)
                shutil.rmtree(self.site.disk_directory(self._vm), ignore_errors=True)

    def disk(self, file: str) -> DiskState | None:
        """The disk that is sent to a file name of its URLs."""
        for number, disk in enumerate(self.site.vm(self._vm).state.disks):
            if file == f"disk-{number}.vmdk":
                return disk
        return None

    def keep(self, disk: DiskState, image: Path) -> None:
        """A disk came whole; InvalidState when the lease has ended meanwhile."""
        with self.site.change():
            self._require_ready()
            disk.image = image.name
            self._sent.add(disk.key)

    @exposes("state")
    def state(self) -> str:
        """Where it stands."""
        return self._state

    @exposes("error")
    def error(self) -> Any:
        """What ended it badly."""
        return self._error

    @exposes("initializeProgress")
    def initialize_progress(self) -> int:
        """Of making the VM."""
        return 0 if self._state == "initializing" else 100

    @exposes("transferProgress")
    def transfer_progress(self) -> int:
        """What was reported last."""
        return self._percent

    @exposes("info")
    def info(self) -> Any:
        """Its VM and URLs, while it is ready."""
        if self._state != "ready":
            return None
        vm = self.site.vm(self._vm)
        host, thumbprint = self.site.lease_host
        store = f"https://{host}/nfc/{self.ticket}/"
        return vim.HttpNfcLease.Info(
            lease=self.ref,
            entity=vm.ref,
            leaseTimeout=max(1, round(self._seconds)),
            totalDiskCapacityInKB=sum(disk.size_bytes >> 10 for disk in vm.state.disks),
            deviceUrl=[
                *(
                    vim.HttpNfcLease.DeviceUrl(
                        key=f"/{vm.moid}/{self._names[disk.key]}",
                        importKey=f"/{vm.state.name}/{self._names[disk.key]}",
                        url=f"{store}disk-{number}.vmdk",
                        sslThumbprint=thumbprint,
                        disk=True,
                        targetId=f"disk-{number}.vmdk",
                        datastoreKey=store,
                    )
                    for number, disk in enumerate(vm.state.disks)
                ),
                # As ESXi 6.7 and later have it for every VM.
                vim.HttpNfcLease.DeviceUrl(
                    key=f"/{vm.moid}/nvram",
                    importKey=f"/{vm.state.name}/nvram",
                    url=f"{store}file-0.nvram",
                    sslThumbprint=thumbprint,
                    disk=False,
                    targetId="file-0.nvram",
                ),
            ],
        )

    @answers("HttpNfcLeaseProgress")
    def progress(self, call: Call, percent: int) -> None:
        """Live on for another while; InvalidState."""
        with self.site.registry.changing():
            self._require_ready()
            self._percent = percent
            self.signs += 1
            self._wind()

    @answers("HttpNfcLeaseComplete")
    def complete(self, call: Call) -> None:
        """The VM is whole; InvalidState, which a disk that was not sent is here (vCenter lets it pass)."""
        with self.site.change():
            self._require_ready()
            vm = self.site.vm(self._vm).state
            missing = [disk.label for disk in vm.disks if disk.key not in self._sent]
            if missing:
                raise vim.fault.InvalidState(msg=f"{', '.join(missing)} was not sent")
            vm.importing = False
            self._state = "done"
            self._unwind()

    @answers("HttpNfcLeaseAbort")
    def abort(self, call: Call, fault: Any = None) -> None:
        """Take the VM away; InvalidState when it has ended."""
        with self.site.registry.reading():
            if self._state in ("done", "error"):
                raise vim.fault.InvalidState(msg=f"The lease is {self._state}")
        self.fail(fault or vim.fault.Timedout(msg="The import was aborted"))

    def _require_ready(self) -> None:
        if self._state != "ready":
            raise vim.fault.InvalidState(msg=f"The lease is in the state {self._state}")

    def _wind(self) -> None:
        self._unwind()
        self._timer = threading.Timer(
            self._seconds, self.fail, [vim.fault.Timedout(msg="The lease has timed out")]
        )
        self._timer.daemon = True
        self._timer.start()

    def _unwind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
