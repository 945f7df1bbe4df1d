"""A run's snapshots on the island's ESX host, and off it again in the order that hosts survive.

Nothing is written down about it: clones are found by their names, LUNs by their clones, volumes
by their LUNs. So whatever was cut short is carried on, or cleared, by the next call.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from atoll.island.runs import CapturedRun
from atoll.model.certificate import CertifiedDisk
from atoll.model.errors import ConfigurationError, StorageConflictError, UnsupportedFormatError
from atoll.model.inventory import Host
from atoll.model.limits import DEFAULTS
from atoll.model.storage import LunGroup
from atoll.storage.interface import StorageEngine
from atoll.vsphere.island_volumes import IslandVolumes, MountedVolume
from atoll.vsphere.placeholder_specs import ShownDisk


@dataclass(frozen=True, slots=True)
class IslandHost:
    """The island's ESX host by its name in the inventory, and its iSCSI initiator."""

    name: str
    iqn: str


@dataclass(frozen=True, slots=True)
class PresentedRun:
    """A run that is on the island: its clones by production LUN group, and the volumes mounted."""

    run: str
    clones: Mapping[str, LunGroup]
    volumes: Sequence[MountedVolume]

    def shown(self, disk: CertifiedDisk) -> ShownDisk:
        """Where the island has a production disk. UnsupportedFormatError where it cannot have it."""
        naas = {lun.name: lun.naa for lun in self.clones[disk.group].luns}
        if disk.raw_lun and disk.vmfs_uuid:
            raise UnsupportedFormatError(
                f"{disk.path} is a raw device mapping with VMware snapshots, which no placeholder "
                "shows; read the VM over NBD or from its restore point."
            )
        if disk.raw_lun:
            return ShownDisk(disk.size_bytes, naa=naas[disk.raw_lun])
        wanted = tuple(naas[lun] for lun in disk.luns)
        for volume in self.volumes:
            if volume.naas == wanted:
                inside = disk.path.partition("] ")[2]
                return ShownDisk(disk.size_bytes, path=f"[{volume.datastore}] {inside}")
        raise UnsupportedFormatError(
            f"The island has mounted no volume of LUN {', '.join(disk.luns)} of run {self.run}, on "
            f"which {disk.path} lay; rescan the island's host in vCenter and refresh once more."
        )


def island_host(hosts: Sequence[Host], name: str, role: str = "island's host") -> IslandHost:
    """The island's host of the inventory, or another that is to see copies, in whatever `role`.

    ConfigurationError when there is none, when it has no iSCSI initiator, or when it shares that
    with another host, which would then see every copy.
    """
    for host in hosts:
        if host.name != name:
            continue
        if host.iqn is None:
            raise ConfigurationError(
                f"The {role} {name} has no iSCSI initiator; switch on its software adapter."
            )
        twins = [other.name for other in hosts if other.iqn == host.iqn and other.name != name]
        if twins:
            raise ConfigurationError(
                f"The {role} {name} has the same iSCSI name as {', '.join(twins)}, so copies "
                "would reach them too; give each host a name of its own."
            )
        return IslandHost(name, host.iqn)
    known = ", ".join(host.name for host in hosts) or "none"
    raise ConfigurationError(f"vCenter has no host {name} to be the {role}; it has {known}.")


class Island:
    """Runs on the island. `site` tells this Atoll's clones from those of others on the storage.

    The host has `most_luns` copies of LUNs at once, not counting what others show it. The clones'
    names begin with their `purpose`.

    One user at a time. Raises what the storage and vCenter raise.
    """

    def __init__(
        self,
        engine: StorageEngine,
        volumes: IslandVolumes,
        host: IslandHost,
        site: str,
        most_luns: int = DEFAULTS.host_luns,
        purpose: str = "island",
    ) -> None:
        self._engine = engine
        self._volumes = volumes
        self._host = host
        self._prefix = f"{purpose}-{site}-"
        self._most_luns = most_luns

    def presented(self) -> dict[str, dict[str, LunGroup]]:
        """The clones on the storage, whatever became of them: by run, then by production group."""
        found: dict[str, dict[str, LunGroup]] = {}
        for group in self._engine.groups():
            if group.clone_of is not None and group.name.startswith(self._prefix):
                run = group.name.removeprefix(self._prefix).rpartition(".")[0]
                found.setdefault(run, {})[group.clone_of.partition("@")[0]] = group
        return found

    def present(self, run: CapturedRun) -> PresentedRun:
        """Clone the run's snapshots, let the island's host alone have them, mount their volumes.

        The volumes get signatures of their own, all of the run or none is used. StorageConflictError,
        and everything withdrawn again, when another host sees one of the LUNs; the same, with nothing
        begun, when the host would have too many.
        """
        self._require_room(run)
        clones = {
            snapshot.group: self._engine.clone(
                snapshot.group, snapshot.name, f"{self._prefix}{run.name}.{number}"
            )
            for number, snapshot in enumerate(run.snapshots)
        }
        luns = [
            (clone, lun)
            for group, clone in clones.items()
            for lun in clone.luns
            if lun.name in _used(run, group)
        ]
        shown = [
            self._engine.present(clone.name, lun.name, [self._host.iqn]) for clone, lun in luns
        ]
        naas = [lun.naa for _, lun in luns]
        # Of raw device mappings guests write every byte: no volume is ever taken from there.
        raw = {
            lun.naa
            for group, clone in clones.items()
            for lun in clone.luns
            if lun.name in _raw(run, group)
        }
        with_volumes = [naa for naa in naas if naa not in raw]
        self._volumes.discover({(p.address, p.port) for each in shown for p in each.portals})
        self._volumes.rescan()
        self._refuse_strays(run.name, clones, naas)
        for copy in self._volumes.copies(with_volumes):
            if copy.obstacle:
                raise UnsupportedFormatError(
                    f"The copy of datastore {copy.label} of run {run.name} cannot be mounted: "
                    f"{copy.obstacle}; put all its LUNs into one group."
                )
            self._volumes.take_in(copy)
        return PresentedRun(run.name, clones, self._volumes.volumes(with_volumes))

    def retire(self, run: str) -> None:
        """Take a run off the island: unmount, detach, withdraw, forget, delete. Absent is success.

        VCenterOperationError, and its volumes stay, while a VM is still on one of them.
        """
        clones = self.presented().get(run, {})
        if not clones:
            return
        naas = _naas(clones.values())
        self._volumes.let_go(naas)
        self._volumes.stop_discovering(self._portals_of_none_but(clones.values()))
        for clone in clones.values():
            for lun in clone.luns:
                self._engine.withdraw(clone.name, lun.name)
        self._volumes.rescan()
        self._volumes.forget(naas)
        for clone in clones.values():
            self._engine.delete_clone(clone.name)

    def _require_room(self, run: CapturedRun) -> None:
        shown = self.presented()
        has = {name: sum(len(c.luns) for c in clones.values()) for name, clones in shown.items()}
        has.pop(run.name, None)
        needs = sum(len(_used(run, snapshot.group)) for snapshot in run.snapshots)
        if sum(has.values()) + needs > self._most_luns:
            raise StorageConflictError(
                f"Run {run.name} needs {needs} LUNs on the island's host {self._host.name}, which may "
                f"have {self._most_luns} (`host_luns` in [limits]) and has {sum(has.values())} of "
                f"other runs ({', '.join(sorted(has)) or 'none'}); take one off with `atoll island "
                "clear`, or wait for the jobs that read it."
            )

    def _portals_of_none_but(self, clones: Collection[LunGroup]) -> set[tuple[str, int]]:
        """The portals that serve these clones and nothing else."""
        names = {clone.name for clone in clones}
        ours: set[tuple[str, int]] = set()
        others: set[tuple[str, int]] = set()
        for shown in self._engine.presentations():
            portals = {(portal.address, portal.port) for portal in shown.portals}
            if shown.group in names:
                ours |= portals
            else:
                others |= portals
        return ours - others

    def _refuse_strays(
        self, run: str, clones: Mapping[str, LunGroup], naas: Collection[str]
    ) -> None:
        seen = {host for host in self._volumes.seen_by(naas) if host != self._host.name}
        if not seen:
            return
        self._volumes.let_go(naas)
        for clone in clones.values():
            self._engine.delete_clone(clone.name)
        raise StorageConflictError(
            f"Host {', '.join(sorted(seen))} sees LUNs of run {run} that are for {self._host.name} "
            "alone, so they were withdrawn; look at the storage's access lists."
        )


def _used(run: CapturedRun, group: str) -> set[str]:
    """The LUNs of a group that disks of the run lie on."""
    disks = [disk for vm in run.certificate.vms for disk in vm.disks if disk.group == group]
    return {lun for disk in disks for lun in disk.luns} | _raw(run, group)


def _raw(run: CapturedRun, group: str) -> set[str]:
    """Those that are raw device mappings."""
    disks = [disk for vm in run.certificate.vms for disk in vm.disks if disk.group == group]
    return {disk.raw_lun for disk in disks if disk.raw_lun}


def _naas(clones: Collection[LunGroup]) -> list[str]:
    return [lun.naa for clone in clones for lun in clone.luns]
