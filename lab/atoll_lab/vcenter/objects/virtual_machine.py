"""A VM: what it is made of, where it runs, and its power and moves."""

import copy
import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.guest_hook import GuestPlan
from atoll_lab.vcenter.objects.authorization import require_privilege
from atoll_lab.vcenter.objects.base import Call, answers, exposes
from atoll_lab.vcenter.objects.snapshot import disk_backing
from atoll_lab.vcenter.objects.vm_configuration import SCSI_KEY, configure, nic_device
from atoll_lab.vcenter.objects.vm_export import export_vm
from atoll_lab.vcenter.objects.vm_snapshots import SnapshotHolder
from atoll_lab.vcenter.objects.vm_start import Question, guest_disks, settle_identity
from atoll_lab.vcenter.state import DiskState

_CREATED = datetime(2024, 1, 1, tzinfo=UTC)


class VirtualMachine(SnapshotHolder):
    """A registered VM. `question` is what its host asks before it goes on."""

    question: Question | None = None

    @property
    def display_name(self) -> str:
        """Its name."""
        return self.state.name

    def vmx_path(self) -> str:
        """`[datastore] dir/name.vmx`."""
        return self.site.datastore(self.state.datastore).path(self.state.vmx_path)

    def datastore_ids(self) -> set[str]:
        """Datastores its files lie on."""
        return {self.state.datastore, *(disk.datastore for disk in self.state.disks)}

    def stamp(self) -> Any:
        """Its record, the names its paths begin with, and whether its host answers."""
        stores = tuple(self.site.datastore(moid).state.name for moid in self.datastore_ids())
        connected = self.site.host(self.state.host).state.connected
        tasks = self.site.tasks.recent(self.moid)
        asked = self.question.id if self.question is not None else ""
        return repr(self.state), stores, connected, tasks, repr(self.guestinfo()), asked

    @exposes("name")
    def name(self) -> str:
        """Its name."""
        return self.state.name

    @exposes("parent")
    def parent(self) -> Any:
        """Its folder."""
        return vim.Folder(self.state.folder)

    @exposes("resourcePool")
    def resource_pool(self) -> Any:
        """The root pool of its host's cluster."""
        host = self.site.host(self.state.host)
        return self.site.layout.clusters[host.state.cluster].pool.ref

    @exposes("config")
    def config(self) -> Any:
        """Its hardware and files."""
        state = self.state
        config = vim.vm.ConfigInfo(
            changeVersion=str(state.version),
            modified=_CREATED,
            name=state.name,
            guestFullName=state.guest_os,
            guestId=state.guest_id,
            firmware=state.firmware,
            annotation=state.annotation,
            version="vmx-21",
            uuid=state.bios_uuid,
            instanceUuid=state.instance_uuid,
            template=state.template,
            files=vim.vm.FileInfo(vmPathName=self.vmx_path()),
            flags=vim.vm.FlagInfo(),
            defaultPowerOps=vim.vm.DefaultPowerOpInfo(),
            hardware=vim.vm.VirtualHardware(
                numCPU=state.cpus,
                memoryMB=state.memory_mb,
                device=[
                    *self._controllers(),
                    *(self._device(number, disk) for number, disk in enumerate(state.disks)),
                    *map(nic_device, state.nics),
                ],
            ),
        )
        config.extraConfig = [
            vim.option.OptionValue(key=key, value=value)
            for key, value in sorted({**state.extra, **self.guestinfo()}.items())
        ]
        if state.manager is not None:
            config.managedBy = vim.ext.ManagedByInfo(extensionKey=state.manager, type="vm")
        return config

    @exposes("runtime")
    def runtime(self) -> Any:
        """Where it runs, and whether."""
        return vim.vm.RuntimeInfo(
            connectionState=(
                "connected" if self.site.host(self.state.host).state.connected else "disconnected"
            ),
            powerState=self._power_state(),
            host=vim.HostSystem(self.state.host),
            consolidationNeeded=self.needs_consolidation(),
            faultToleranceState=self.state.fault_tolerance,
            toolsInstallerMounted=False,
            numMksConnections=0,
            recordReplayState="inactive",
            onlineStandby=False,
            question=self.question.info() if self.question is not None else None,
        )

    @exposes("guest")
    def guest(self) -> Any:
        """What the guest says."""
        running = self.state.powered_on
        return vim.vm.GuestInfo(
            toolsStatus="toolsOk" if running else "toolsNotRunning",
            toolsRunningStatus=self.state.tools.running if running else "guestToolsNotRunning",
            guestFullName=self.state.guest_os,
            hostName=self.state.name,
            ipAddress=(self.state.tools.address or None) if running else None,
            guestState="running" if running else "notRunning",
        )

    @exposes("datastore")
    def datastores(self) -> list[Any]:
        """Datastores its files lie on."""
        return [vim.Datastore(moid) for moid in sorted(self.datastore_ids())]

    @answers("PowerOnVM_Task")
    def power_on(self, call: Call, host: Any = None) -> Any:
        """Start it; InvalidPowerState when it runs, NoPermission."""
        require_privilege(
            self.site, call.session.user or "", self, "VirtualMachine.Interact.PowerOn"
        )
        self._require_whole()
        return self._task(call, "PowerOnVM_Task", self._power_on)

    @answers("AnswerVM")
    def answer(self, call: Call, questionId: str, answerChoice: str) -> None:
        """Answer what it asks; InvalidArgument for another question, or no choice."""
        question = self.question
        if question is None or question.id != questionId:
            raise vmodl.fault.InvalidArgument(msg=f"There is no question {questionId}")
        question.answer(answerChoice)

    @answers("PowerOffVM_Task")
    def power_off(self, call: Call) -> Any:
        """Stop it hard; InvalidPowerState when it does not run."""
        return self._task(call, "PowerOffVM_Task", lambda: self._power(False))

    @answers("UnregisterVM")
    def unregister(self, call: Call) -> None:
        """Take it out of the inventory; its files stay."""
        with self.site.change():
            if self.state.powered_on:
                raise _wrong_power(self)
            self.site.remove_vm(self.moid)

    @answers("ReconfigVM_Task")
    def reconfigure(self, call: Call, spec: Any) -> Any:
        """Change what it is made of, all or nothing."""

        def work() -> None:
            with self.site.change():
                changed = copy.deepcopy(self.state)
                configure(self.site, changed, spec)
                for name, value in vars(changed).items():
                    setattr(self.state, name, value)

        return self._task(call, "ReconfigVM_Task", work)

    @answers("Destroy_Task")
    def destroy(self, call: Call) -> Any:
        """Delete it with the files in its own directory; InvalidPowerState when it runs."""

        def work() -> None:
            with self.site.change():
                self._require_whole()
                if self.state.powered_on:
                    raise _wrong_power(self)
                path = self.vmx_path()
                self.site.remove_vm(self.moid)
                del self.site.state.shelf[path]
            shutil.rmtree(self.site.disk_directory(self.moid), ignore_errors=True)

        return self._task(call, "Destroy_Task", work)

    @answers("ExportVm")
    def export(self, call: Call) -> Any:
        """A lease under which its disks are read; InvalidPowerState when it runs."""
        self._require_whole()
        return export_vm(self, call)

    @answers("Rename_Task")
    def rename(self, call: Call, newName: str) -> Any:
        """Give it another name; its files keep theirs."""

        def work() -> None:
            with self.site.change():
                self.state.name = newName

        return self._task(call, "Rename_Task", work)

    @answers("MigrateVM_Task")
    def migrate(
        self, call: Call, priority: Any, pool: Any = None, host: Any = None, state: Any = None
    ) -> Any:
        """vMotion to another host."""
        if host is None:
            raise vmodl.fault.InvalidArgument(msg="A host is needed", invalidProperty="host")
        return self._task(call, "MigrateVM_Task", lambda: self.move(host._moId, None))

    @answers("RelocateVM_Task")
    def relocate(self, call: Call, spec: Any, priority: Any = None) -> Any:
        """vMotion and storage vMotion, of all files or of single disks."""
        host = spec.host._moId if spec.host else None
        datastore = spec.datastore._moId if spec.datastore else None
        disks = {each.diskId: each.datastore._moId for each in spec.disk}
        # Mappings of LUNs become disks of their own where another backing is asked for.
        flat = {each.diskId for each in spec.disk if each.diskBackingInfo is not None}

        def work() -> None:
            self.move(host, datastore, disks, flat)

        return self._task(call, "RelocateVM_Task", work)

    def move(
        self,
        host_moid: str | None,
        datastore_moid: str | None,
        disks: dict[int, str] | None = None,
        flat: Collection[int] = (),
    ) -> None:
        """Move to a host and datastores, all or nothing; the host must reach every datastore.

        Disks with keys in `flat` are VMDKs afterwards, whatever they were. A mapping moves without
        the LUN's content else.
        """
        site, state = self.site, self.state
        if flat and site.guests.follows(state.name):
            self._copy_disks(flat)
        with site.change():
            target = host_moid or state.host
            home = datastore_moid or state.datastore
            homes = {
                disk.key: (disks or {}).get(disk.key, datastore_moid or disk.datastore)
                for disk in state.disks
            }
            host = site.host(target)
            for moid in sorted({home, *homes.values()}):
                datastore = site.datastore(moid)
                if not datastore.reachable_from(target):
                    raise vim.fault.InaccessibleDatastore(
                        msg=f"{host.state.name} has not mounted {datastore.state.name}",
                        datastore=datastore.ref,
                        name=datastore.state.name,
                    )
            state.host, state.datastore = target, home
            for disk in state.disks:
                if disk.key in flat and disk.datastore != homes[disk.key]:
                    disk.kind, disk.lun, disk.compatibility = "flat", "", "physicalMode"
                    disk.path = f"{state.name}/{state.name}_{disk.key}.vmdk"
                disk.datastore = homes[disk.key]

    def _power_state(self) -> str:
        if self.state.suspended:
            return "suspended"
        return "poweredOn" if self.state.powered_on else "poweredOff"

    def _power_on(self) -> None:
        with self.site.registry.reading():
            if self.state.powered_on or self.state.template:
                raise _wrong_power(self)
        if self.state.copied:
            self._ask_if_copied()
        self._power(True)

    def _ask_if_copied(self) -> None:
        """Ask, unless its settings say what to do; FileFault when it is not to be powered on."""
        action = self.state.extra.get("uuid.action", "")
        copied: bool | None = action == "create"
        if action not in ("keep", "create"):
            question = Question(self.state.name)
            with self.site.registry.changing():
                self.question = question
            try:
                copied = question.wait()
            finally:
                with self.site.registry.changing():
                    self.question = None
        if copied is None:
            raise vmodl.fault.RequestCanceled(msg="The question was answered with Cancel.")
        with self.site.change():
            settle_identity(self.state, copied=copied)

    def _copy_disks(self, flat: Collection[int]) -> None:
        """Storage vMotion of what a real guest runs from: to files of the simulator's."""
        state, place = self.state, self.site.disk_directory(self.moid)
        files = [place / f"moved-{disk.key}.raw" for disk in state.disks]
        self.site.guests.move_disks(state.name, guest_disks(self), files)
        with self.site.change():
            for disk, file in zip(state.disks, files, strict=True):
                disk.image = file.name

    def _follow(self, on: bool) -> None:
        """Let the guest behind it follow its power."""
        state, guests = self.state, self.site.guests
        self.site.power(state.name, on)
        if not guests.follows(state.name):
            return
        if not on:
            guests.stop(state.name)
            return
        guests.start(
            GuestPlan(
                vm=state.name,
                memory_bytes=state.memory_mb << 20,
                cpus=state.cpus,
                disks=guest_disks(self),
                connected=any(nic.start_connected for nic in state.nics),
            )
        )

    def _power(self, on: bool) -> None:
        with self.site.registry.reading():
            if self.state.powered_on == on or self.state.template:
                raise _wrong_power(self)
        try:
            self._follow(on)
        except vmodl.MethodFault:
            raise
        except Exception as error:
            raise vim.fault.GenericVmConfigFault(
                msg=f"The guest of {self.state.name} would not follow: {error}", reason=str(error)
            ) from error
        with self.site.change():
            self.state.powered_on = on

    def _controllers(self) -> list[Any]:
        if not self.state.controllers:
            return [
                vim.vm.device.ParaVirtualSCSIController(
                    key=SCSI_KEY, busNumber=0, sharedBus=self.state.bus_sharing
                )
            ]
        made = [vim.vm.device.VirtualIDEController(key=200 + bus, busNumber=bus) for bus in (0, 1)]
        for each in self.state.controllers:
            kind: Any = getattr(vim.vm.device, each.kind)
            own = {}
            if issubclass(kind, vim.vm.device.VirtualSCSIController):
                own["sharedBus"] = each.sharing
            made.append(kind(key=each.key, busNumber=each.bus, **own))
        return made

    def _require_whole(self) -> None:
        """TaskInProgress while its import holds a lease, which blocks what would change it."""
        if self.state.importing:
            raise vim.fault.TaskInProgress(
                msg=f"{self.state.name} is being imported", task=vim.Task("task-import")
            )

    def _device(self, number: int, disk: DiskState) -> Any:
        return vim.vm.device.VirtualDisk(
            key=disk.key,
            controllerKey=disk.controller or SCSI_KEY,
            unitNumber=disk.unit if disk.controller else number if number < 7 else number + 1,
            deviceInfo=vim.Description(label=disk.label, summary=f"{disk.size_bytes >> 10:,} KB"),
            capacityInKB=disk.size_bytes >> 10,
            capacityInBytes=disk.size_bytes,
            backing=disk_backing(self, disk),
        )


def _wrong_power(vm: VirtualMachine) -> Any:
    on = vm.state.powered_on
    return vim.fault.InvalidPowerState(
        msg="The attempted operation cannot be performed in the current state "
        f"({'Powered on' if on else 'Powered off'}).",
        existingState="poweredOn" if on else "poweredOff",
        requestedState="poweredOff" if on else "poweredOn",
    )
