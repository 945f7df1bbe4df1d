"""Where a recovered VM's disks come from: clones of the storage's snapshots, or the repository.

Both are brought to the host in the order that it needs (present, rescan, then use) and taken away in
the order that it survives (no VM, then unmount and detach, then withdraw).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

from atoll.island.presentation import Island, IslandHost, PresentedRun
from atoll.island.runs import CapturedRun, captured_runs
from atoll.model.certificate import CertifiedVm
from atoll.model.errors import (
    AtollError,
    ConfigurationError,
    StorageConflictError,
    UnknownPointError,
    UnsupportedFormatError,
)
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.recovery.disk_target import TargetDisk, free_port
from atoll.recovery.recovered_hardware import Wished, hardware_of_point
from atoll.service.recoveries import RecoverOptions, Recovery
from atoll.service.recovery_serving import recoveries, stop_serving, target_disks, target_of
from atoll.service.site import Site
from atoll.vsphere.island_volumes import IslandVolumes
from atoll.vsphere.places import WantedPlace
from atoll.vsphere.recovered_specs import Network, RecoveredVm
from atoll.vsphere.recovered_vms import Identity

PURPOSE = "recover"
Passed = Callable[[str], None]


class SourceOfDisks(ABC):
    """What differs between the two. Everything may be repeated; taking away what is absent succeeds."""

    def __init__(self, site: Site, record: Recovery, mark: str) -> None:
        self.site = site
        self.record = record
        self.mark = mark

    @abstractmethod
    def check(self, record: Recovery, options: RecoverOptions) -> Recovery:
        """See whether it can be done, before anything is; the record with what was chosen."""

    @abstractmethod
    def bring(
        self, record: Recovery, options: RecoverOptions, progress: Progress, passed: Passed
    ) -> tuple[str, Sequence[str]]:
        """Bring the disks to the host and make the VM, switched off: its id, and what to tell."""

    @abstractmethod
    def datastores(self) -> set[str]:
        """The datastores that the recovery brought to the host, as it has them now."""

    @abstractmethod
    def remove_vm(self, vm: RecoveredVm) -> None:
        """Take the VM, which is off, out of vCenter."""

    @abstractmethod
    def retire(self, record: Recovery) -> None:
        """Take everything away that no VM uses any more."""


def snapshot_source(site: Site, record: Recovery, mark: str) -> SourceOfDisks:
    """Clones of a run's storage snapshots."""
    return _Snapshot(site, record, mark)


def repository_source(
    site: Site, record: Recovery, mark: str, spawn: Callable[[Recovery], None]
) -> SourceOfDisks:
    """A restore point; `spawn` starts the process that serves its disks."""
    return _Repository(site, record, mark, spawn)


def clones_of(site: Site) -> set[str]:
    """Ids of the recoveries that have clones on the storage."""
    prefix = f"{PURPOSE}-{site.identity()}-"
    return {
        group.name.removeprefix(prefix).rpartition(".")[0]
        for group in site.engine().groups()
        if group.clone_of is not None and group.name.startswith(prefix)
    }


def pick_captured(runs: Sequence[CapturedRun], reference: str) -> tuple[CapturedRun, CertifiedVm]:
    """The run and VM that `VM@RUN` or `RUN` means, `latest` too; UnknownPointError."""
    vm, at, run = reference.partition("@")
    if not at and reference != "latest" and not reference[:1].isdigit():
        run = "latest"
    elif not at:
        vm, run = "", reference
    fitting = [
        (each, one)
        for each in runs
        for one in each.certificate.vms
        if vm in ("", one.name, one.instance_uuid)
        and (run == "latest" or each.name.startswith(run))
    ]
    if run == "latest":
        fitting = [pair for pair in fitting if pair[0] is fitting[-1][0]]
    if not fitting:
        known = ", ".join(each.name for each in runs[-5:]) or "none"
        raise UnknownPointError(
            f"The storage has no snapshots of {reference}; the newest runs it has are: {known}."
        )
    if len(fitting) > 1:
        names = ", ".join(f"{one.name}@{each.name}" for each, one in fitting[-5:])
        raise UnknownPointError(f"{reference!r} fits several VMs, {names}; write VM@RUN.")
    return fitting[0]


class _Snapshot(SourceOfDisks):
    def check(self, record: Recovery, options: RecoverOptions) -> Recovery:
        _, vm = self._captured()
        self._home(vm)
        for disk in vm.disks:
            if disk.raw_lun:
                raise UnsupportedFormatError(
                    f"{disk.path} of {vm.name} is a raw device mapping, which cannot be recovered from "
                    "the snapshot in place; recover the VM with --from repository."
                )
        return record

    def bring(
        self, record: Recovery, options: RecoverOptions, progress: Progress, passed: Passed
    ) -> tuple[str, Sequence[str]]:
        progress.stage(record.vm, "present")
        run, vm = self._captured()
        snapshots = [(taken.group, taken.name) for taken in run.snapshots]
        with self.site.pins().reading(snapshots):
            run, vm = self._captured()  # under the pins: they may have been deleted meanwhile
            presented = self._island().present(_only(run, vm, record.id))
        passed("presented")
        progress.stage(record.vm, "register")
        vms = self.site.vcenter().recovered()
        paths = {disk.key: presented.shown(disk).path for disk in vm.disks}
        vmx = self._copied_vmx(presented, vm)
        moref = vms.register(vmx, record.name, _wanted(options, _store(vmx)))
        vms.adopt(
            moref, paths, Network(options.connected, options.mapped), self.mark, keep=options.keep
        )
        passed("registered")
        return moref, ()

    def datastores(self) -> set[str]:
        luns = self._naas()
        if not luns:
            return set()
        return {volume.datastore for volume in self._volumes().volumes(luns)}

    def remove_vm(self, vm: RecoveredVm) -> None:
        self.site.vcenter().recovered().unregister(vm.moref)

    def retire(self, record: Recovery) -> None:
        if not self._naas():
            return
        self._island().retire(record.id)

    def _captured(self) -> tuple[CapturedRun, CertifiedVm]:
        reference = f"{self.record.vm}@{self.record.run}"
        return pick_captured(captured_runs(self.site.engine()), reference)

    def _island(self) -> Island:
        return Island(
            self.site.engine(),
            self._volumes(),
            IslandHost(self._host(), self.record.initiator),
            self.site.identity(),
            self.site.limits.host_luns,
            PURPOSE,
        )

    def _volumes(self) -> IslandVolumes:
        return self.site.vcenter().island_volumes(self._host())

    def _host(self) -> str:
        """That of the record; of clones without one, the host that sees them."""
        if self.record.host:
            return self.record.host
        hosts = self.site.vcenter().inventory().hosts
        shown = {
            name
            for each in self.site.engine().presentations()
            if each.group.startswith(f"{PURPOSE}-{self.site.identity()}-{self.record.id}.")
            for name in each.initiators
        }
        for host in hosts:
            if host.iqn in shown:
                return host.name
        return hosts[0].name

    def _naas(self) -> list[str]:
        prefix = f"{PURPOSE}-{self.site.identity()}-{self.record.id}."
        return [
            lun.naa
            for group in self.site.engine().groups()
            if group.clone_of is not None and group.name.startswith(prefix)
            for lun in group.luns
        ]

    def _home(self, vm: CertifiedVm) -> int:
        """The key of a disk on the datastore that has the VMX."""
        for disk in vm.disks:
            if not disk.raw_lun and _store(disk.path) == _store(vm.vmx):
                return disk.key
        raise UnsupportedFormatError(
            f"The configuration file {vm.vmx} of {vm.name} lies on a datastore that none of its disks "
            "is on, so the snapshots do not have it; recover the VM with --from repository."
        )

    def _copied_vmx(self, presented: PresentedRun, vm: CertifiedVm) -> str:
        key = self._home(vm)
        (disk,) = (each for each in vm.disks if each.key == key)
        inside = vm.vmx.partition("] ")[2]
        return f"[{_store(presented.shown(disk).path)}] {inside}"


class _Repository(SourceOfDisks):
    def __init__(
        self, site: Site, record: Recovery, mark: str, spawn: Callable[[Recovery], None]
    ) -> None:
        super().__init__(site, record, mark)
        self._spawn = spawn

    def check(self, record: Recovery, options: RecoverOptions) -> Recovery:
        point = self.site.repository().find(record.reference)
        if not options.datastore:
            raise ConfigurationError(
                "A VM from the repository needs a datastore for its own files, a few kilobytes and its "
                "swap file; name one with --datastore."
            )
        hardware_of_point(point, _wished(record, options), options.datastore)
        wanted = _wanted(options, options.datastore)
        self.site.vcenter().recovered().place(wanted, ())
        target_of(self.site, record)
        place = self.site.recovery
        taken = [each.port for each in recoveries(self.site).all()]
        port = free_port(place.addresses, *place.ports, taken)
        return replace(record, disks=len(point.disks), port=port)

    def bring(
        self, record: Recovery, options: RecoverOptions, progress: Progress, passed: Passed
    ) -> tuple[str, Sequence[str]]:
        told = self._hold(record)
        progress.stage(record.vm, "serve")
        self._spawn(record)
        passed("served")
        progress.stage(record.vm, "present")
        point = self.site.repository().find(record.reference)
        naas = [disk.naa for disk in self._disks(record, point)]
        volumes = self.site.vcenter().island_volumes(record.host)
        volumes.discover(self._portals(record))
        volumes.rescan()
        self._refuse_strays(record, naas)
        passed("presented")
        progress.stage(record.vm, "register")
        made = hardware_of_point(point, _wished(record, options), options.datastore)
        moref, more = (
            self.site.vcenter()
            .recovered()
            .create(
                made.hardware,
                _wanted(options, options.datastore),
                naas,
                Identity(made.bios_uuid),
                self.mark,
            )
        )
        passed("registered")
        return moref, (*told, *made.told, *more)

    def datastores(self) -> set[str]:
        return set()

    def remove_vm(self, vm: RecoveredVm) -> None:
        self.site.vcenter().recovered().destroy(vm.moref)

    def retire(self, record: Recovery) -> None:
        volumes = self.site.vcenter().island_volumes(record.host)
        naas = [disk.naa for disk in target_disks(self.site, record, [0] * record.disks)]
        if record.port:
            volumes.let_go(naas)
            volumes.stop_discovering(self._portals(record))
        stop_serving(self.site, record)
        if record.port:
            volumes.rescan()
            volumes.forget(naas)
        self._release(record)

    def _disks(self, record: Recovery, point: RestorePoint) -> list[TargetDisk]:
        return target_disks(self.site, record, [disk.size_bytes for disk in point.disks])

    def _portals(self, record: Recovery) -> set[tuple[str, int]]:
        return {(address, record.port) for address in self.site.recovery.addresses}

    def _refuse_strays(self, record: Recovery, naas: Sequence[str]) -> None:
        seen = self.site.vcenter().island_volumes(record.host).seen_by(naas)
        if missing := set(naas) - set(seen.get(record.host, ())):
            raise StorageConflictError(
                f"Host {record.host} does not see {len(missing)} of the LUNs of {record.reference} after "
                f"a rescan; see that it reaches {', '.join(self.site.recovery.addresses)} (`addresses` in "
                "[recovery])."
            )
        if others := sorted(seen.keys() - {record.host}):
            raise StorageConflictError(
                f"Host {', '.join(others)} sees LUNs of {record.reference} that are for {record.host} "
                "alone; give each host an iSCSI name of its own."
            )

    def _hold(self, record: Recovery) -> Sequence[str]:
        """Have the point stay, also while nobody serves it."""
        try:
            self.site.repository().hold(record.point, self._reason(record))
        except AtollError as error:
            return [
                f"The restore point could not be put on hold ({str(error).rstrip('.')}); see that nobody "
                "forgets it meanwhile."
            ]
        return ()

    def _release(self, record: Recovery) -> None:
        repository = self.site.repository()
        for hold in repository.holds().found:
            if hold.point == record.point and hold.reason == self._reason(record):
                repository.release(hold.name)

    def _reason(self, record: Recovery) -> str:
        return f"recovery {record.id} runs from it"


def _only(run: CapturedRun, vm: CertifiedVm, name: str) -> CapturedRun:
    """The part of a run that one VM needs, under another name."""
    groups = tuple(
        group for group in run.certificate.groups if group in {d.group for d in vm.disks}
    )
    return CapturedRun(
        replace(run.certificate, run=name, groups=groups, vms=(vm,)),
        tuple(taken for taken in run.snapshots if taken.group in groups),
    )


def _wanted(options: RecoverOptions, datastore: str) -> WantedPlace:
    return WantedPlace(options.host, datastore, options.folder, options.pool)


def _wished(record: Recovery, options: RecoverOptions) -> Wished:
    return Wished(record.name, options.keep, options.connected, options.mapped)


def _store(path: str) -> str:
    return path.partition("]")[0].removeprefix("[")
