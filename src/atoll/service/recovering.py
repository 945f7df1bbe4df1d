"""A VM recovered in place: begun, looked at, served again, ended; what was cut short is cleared."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atoll.island.presentation import island_host
from atoll.island.runs import captured_runs
from atoll.model.errors import (
    AtollError,
    RestoreTargetError,
    UnknownPointError,
    UnknownVmError,
)
from atoll.model.progress import Progress, Silent
from atoll.service.recoveries import RecoverOptions, Recovery, Source
from atoll.service.recovery_serving import recoveries, spawn, written_bytes
from atoll.service.recovery_sources import (
    SourceOfDisks,
    clones_of,
    pick_captured,
    repository_source,
    snapshot_source,
)
from atoll.service.site import Site
from atoll.vsphere.recovered_specs import RecoveredVm


@dataclass(frozen=True, slots=True)
class Recovered:
    """A recovery that was begun. `seconds` since the command by what was done then, in order."""

    recovery: Recovery
    moref: str
    powered_on: bool
    seconds: Mapping[str, float]
    told: Sequence[str]


@dataclass(frozen=True, slots=True)
class RecoveryStatus:
    """A recovery as it is. `state` is a word or two, `vm_name` empty without a VM in vCenter."""

    recovery: Recovery
    state: str
    vm_name: str
    powered_on: bool
    written_bytes: int


def recover_vm(
    site: Site,
    reference: str,
    source: Source | None,
    options: RecoverOptions,
    progress: Progress,
    began: float | None = None,
) -> Recovered:
    """Let a VM run from the storage's snapshot of a run, or straight from the repository.

    `reference` is `VM@RUN`, from the snapshot also a run that has one VM. Without a `source` it is the
    snapshot while the storage has it. `began` is the moment (monotonic) that seconds are counted
    from. What is begun and fails is taken back.
    """
    began = time.monotonic() if began is None else began
    seconds: dict[str, float] = {}
    chosen = _chosen(site, reference, source)
    host = island_host(site.vcenter().inventory().hosts, options.host, "host of the recovery")
    known = recoveries(site)
    name = options.name or f"{chosen.vm}-recovered-{chosen.run[:13]}"
    if any(record.name == name for record in known.all()):
        raise RestoreTargetError(
            f"There is a recovery {name} already; end it, or give this one another --name."
        )
    record = Recovery(
        id=known.new_id(),
        name=name,
        source=chosen.source,
        vm=chosen.vm,
        run=chosen.run,
        point=chosen.point,
        host=host.name,
        initiator=host.iqn,
        datastore=options.datastore,
        disks=0,
        port=0,
        began_at=time.time(),
        stage="begun",
    )

    def passed(stage: str) -> None:
        seconds[stage] = round(time.monotonic() - began, 3)

    disks = _disks(site, record, options.config)
    with known.working(record.id):
        record = disks.check(record, options)
        try:
            known.put(record)
            moref, told = disks.bring(record, options, progress, passed)
            if options.power_on:
                progress.stage(chosen.vm, "power-on")
                site.vcenter().recovered().power_on(moref, keep=options.keep)
                passed("power-on")
            record = replace(record, stage="running")
            known.put(record)
        except BaseException as error:
            _take_back(site, record, error)
            raise
    return Recovered(record, moref, options.power_on, seconds, told)


def list_recoveries(site: Site) -> list[RecoveryStatus]:
    """All of them, and clones of recoveries of which nothing is recorded."""
    known = recoveries(site)
    records = known.all()
    vms = {vm.mark: vm for vm in site.vcenter().recovered().all() if vm.mark}
    found = []
    for record in records:
        vm = vms.get(mark_of(site, record))
        found.append(
            RecoveryStatus(
                record,
                _state(site, record, vm),
                vm.name if vm else "",
                vm.powered_on if vm else False,
                written_bytes(site, record),
            )
        )
    recorded = {record.id for record in records}
    for clone in clones_of(site) - recorded:
        found.append(RecoveryStatus(_unrecorded(clone), "not recorded", "", False, 0))
    return found


def resume_recovery(site: Site, name: str, config: Path | None) -> Recovery:
    """Serve the disks of a recovery from the repository again, whose process died. Running is success.

    UnknownPointError for one from a snapshot: its storage serves it.
    """
    known = recoveries(site)
    record = known.find(name)
    if record.source != "repository":
        raise UnknownPointError(
            f"{record.name} runs from a storage snapshot, which the storage serves; see `atoll storage`."
        )
    with known.working(record.id):
        if not known.is_served(record.id):
            spawn(site, record, config)
    return record


def end_recovery(site: Site, name: str, keep_on: str | None, progress: Progress) -> list[str]:
    """End it: with the VM moved to datastore `keep_on`, or without the VM. A sentence for each thing done.

    Repeatable, and goes on with what was cut short. RestoreTargetError when it is to be discarded and
    the VM has been moved already.
    """
    known = recoveries(site)
    record = _named(site, name)
    with known.working(record.id):
        record = known.read(record.id) or record
        return _end(site, record, keep_on, progress)


def tidy_recoveries(site: Site) -> list[str]:
    """Go on with what was cut short, and tell of what is not served any more; a sentence each."""
    known = recoveries(site)
    told = []
    for record in known.all():
        if known.is_worked_on(record.id):
            continue
        try:
            told += _tidy(site, record)
        except AtollError as error:
            told.append(f"Recovery {record.name} could not be cleared: {error}")
    return told


def mark_of(site: Site, record: Recovery) -> str:
    """What the VM of a recovery has in its settings."""
    return f"{site.identity()}-{record.id}"


@dataclass(frozen=True, slots=True)
class _Chosen:
    source: Source
    vm: str
    run: str
    point: str


def _chosen(site: Site, reference: str, source: Source | None) -> _Chosen:
    """What is meant, and where it is taken from."""
    if source != "repository":
        try:
            run, vm = pick_captured(captured_runs(site.engine()), reference)
            return _Chosen("snapshot", vm.name, run.name, "")
        except UnknownPointError:
            if source == "snapshot" or not site.has_repository:
                raise
    point = site.repository().find(reference)
    return _Chosen("repository", point.vm, point.run, point.id)


def _disks(site: Site, record: Recovery, config: Path | None) -> SourceOfDisks:
    mark = mark_of(site, record)
    if record.source == "snapshot":
        return snapshot_source(site, record, mark)
    return repository_source(site, record, mark, lambda now: spawn(site, now, config))


def _take_back(site: Site, record: Recovery, error: BaseException) -> None:
    """After a recovery that failed; what then fails too is for `end` and the next cleanup."""
    try:
        _end(site, record, None, Silent())
    except AtollError as failed:
        error.add_note(
            f"What was begun could not all be taken back ({str(failed).rstrip('.')}); end it with "
            f"`atoll recover end {record.name} --discard`."
        )


def _end(site: Site, record: Recovery, keep_on: str | None, progress: Progress) -> list[str]:
    known, vms = recoveries(site), site.vcenter().recovered()
    disks = _disks(site, record, None)
    ours = disks.datastores()
    vm = vms.find(mark_of(site, record), ours)
    done = []
    if keep_on is None:
        if vm is not None and record.stage != "begun" and _is_moved(vm, ours):
            raise RestoreTargetError(
                f"VM {vm.name} lies on {', '.join(sorted(vm.datastores))} by now; end the recovery with "
                "--keep, or delete the VM in vCenter first."
            )
        if known.read(record.id) is not None:
            known.put(replace(record, stage="ending", keep_on=""))
        if vm is not None:
            progress.stage(record.vm, "end")
            vms.power_off(vm.moref)
            disks.remove_vm(vm)
            done.append(f"VM {vm.name} was switched off and is gone.")
    else:
        if vm is None:
            raise UnknownVmError(
                f"The VM of recovery {record.name} is not in vCenter any more; end it with --discard."
            )
        known.put(replace(record, stage="ending", keep_on=keep_on))
        if not _is_moved(vm, ours):
            progress.stage(record.vm, "move")
            vms.move(vm.moref, keep_on)
            vm = vms.look(vm.moref)
            done.append(f"VM {vm.name} was moved to datastore {keep_on}.")
        if not _is_moved(vm, ours):
            raise RestoreTargetError(
                f"VM {vm.name} still has files on {', '.join(sorted(vm.datastores))} after it was moved; "
                "see to it in vCenter, then end the recovery again."
            )
        vms.unmark(vm.moref)
    progress.stage(record.vm, "retire")
    disks.retire(record)
    known.forget(record.id)
    done.append(f"Nothing of recovery {record.name} is left on storage and host.")
    return done


def _is_moved(vm: RecoveredVm, ours: set[str]) -> bool:
    """Whether none of it is on what the recovery brought."""
    return not vm.datastores & ours and not any(disk.raw for disk in vm.disks)


def _tidy(site: Site, record: Recovery) -> list[str]:
    known = recoveries(site)
    if record.stage == "running":
        if record.source == "repository" and not known.is_served(record.id):
            return [
                f"The disks of recovery {record.name} are not served any more; `atoll recover resume "
                f"{record.name}` serves them again, with all that was written."
            ]
        return []
    with known.working(record.id):
        now = known.read(record.id)
        if now is None or now.stage == "running":
            return []
        vm = (
            site.vcenter()
            .recovered()
            .find(mark_of(site, now), _disks(site, now, None).datastores())
        )
        if now.stage == "begun" and vm is not None and vm.powered_on:
            # Cut short when all was done: somebody may be working in it.
            known.put(replace(now, stage="running"))
            return [f"Recovery {now.name} was cut short with its VM running; it goes on."]
        _end(site, now, now.keep_on or None, Silent())
    return [f"Cleared recovery {now.name}, which was cut short."]


def _state(site: Site, record: Recovery, vm: RecoveredVm | None) -> str:
    known = recoveries(site)
    if record.stage != "running":
        return record.stage if known.is_worked_on(record.id) else "cut short"
    if record.source == "repository" and not known.is_served(record.id):
        return "not served"
    return "running" if vm is not None else "without a VM"


def _named(site: Site, name: str) -> Recovery:
    """A recovery, or clones that no record is of any more."""
    try:
        return recoveries(site).find(name)
    except UnknownPointError:
        if name in clones_of(site):
            return _unrecorded(name)
        raise


def _unrecorded(clone: str) -> Recovery:
    return Recovery(clone, clone, "snapshot", "", "", "", "", "", "", 0, 0, 0.0, "ending")
