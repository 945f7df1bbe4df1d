"""Which placeholder shows which run: every VM's newest, unless a job still reads an older one."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from atoll.island.presentation import Island, PresentedRun
from atoll.island.runs import CapturedRun
from atoll.model.certificate import CertifiedVm
from atoll.model.errors import AtollError
from atoll.model.limits import DEFAULTS
from atoll.vsphere.placeholder_specs import Hardware, Placeholder
from atoll.vsphere.placeholder_vms import Placeholders


@dataclass(slots=True)
class Refreshed:
    """What a refresh did. `kept` has a sentence for each thing that stays as it was, and why."""

    run: str
    shown: list[Placeholder] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def refresh(
    island: Island,
    placeholders: Placeholders,
    run: CapturedRun,
    alive: Mapping[str, Hardware],
    at_once: int = DEFAULTS.host_tasks,
) -> Refreshed:
    """Let the run's VMs be seen on the island, then clear what nobody sees any more.

    `alive` is the hardware, by instance UUID, of the VMs that vCenter has now. A placeholder in use
    stays with its run; that of a VM that is gone goes when it is not. Other runs' VMs stay.
    `at_once` placeholders are worked on at a time.
    """
    placeholders.prepare()
    done = Refreshed(run.name)
    # What an earlier refresh left half-done, of this run too, begins anew.
    _retire_unseen(island, placeholders, done)
    done.retired = [name for name in done.retired if name != run.name]
    presented = island.present(run)
    known = {placeholder.vm: placeholder for placeholder in placeholders.all()}
    # First: a new VM may have the name of one that is gone.
    for placeholder in known.values():
        if placeholder.vm not in alive and not placeholder.in_use:
            try:
                placeholders.remove(placeholder)
                done.removed.append(placeholder.name)
            except AtollError as error:  # a job has begun to read it since
                done.kept.append(str(error))

    def show(vm: CertifiedVm) -> Placeholder | str:
        hardware = alive.get(vm.instance_uuid)
        if hardware is None:
            return f"VM {vm.name} is not in vCenter any more, so nothing shows it."
        try:
            return _show(placeholders, presented, vm, hardware, known.get(vm.instance_uuid))
        except AtollError as error:
            return str(error)

    with ThreadPoolExecutor(at_once, thread_name_prefix="placeholder") as pool:
        for outcome in pool.map(show, run.certificate.vms):
            if isinstance(outcome, Placeholder):
                done.shown.append(outcome)
            else:
                done.kept.append(outcome)
    placeholders.remove_empty_folders()
    _retire_unseen(island, placeholders, done)
    return done


def clear(
    island: Island, placeholders: Placeholders, run: str | None, at_once: int = DEFAULTS.host_tasks
) -> Refreshed:
    """Take a run, or all, off the island; placeholders stay, without disks.

    Those in use stay as they are, and their runs with them.
    """
    done = Refreshed(run or "")
    emptied = []
    for placeholder in placeholders.all():
        if not placeholder.disks or (run is not None and placeholder.run != run):
            continue
        if placeholder.in_use:
            done.kept.append(
                f"Placeholder {placeholder.name} has a VMware snapshot, so a backup job still reads "
                f"run {placeholder.run}."
            )
        else:
            emptied.append(placeholder)

    def empty(placeholder: Placeholder) -> str:
        try:
            placeholders.empty(placeholder)
        except AtollError as error:  # a job has begun to read it since
            return str(error)
        return ""

    with ThreadPoolExecutor(at_once, thread_name_prefix="placeholder") as pool:
        done.kept += [said for said in pool.map(empty, emptied) if said]
    _retire_unseen(island, placeholders, done)
    return done


def clear_unseen(island: Island, placeholders: Placeholders) -> Refreshed:
    """Take those runs off the island that no placeholder shows."""
    done = Refreshed("")
    _retire_unseen(island, placeholders, done)
    return done


def _show(
    placeholders: Placeholders,
    presented: PresentedRun,
    vm: CertifiedVm,
    hardware: Hardware,
    known: Placeholder | None,
) -> Placeholder:
    disks = {disk.key: presented.shown(disk) for disk in vm.disks}
    return placeholders.put(vm.instance_uuid, vm.name, presented.run, hardware, disks, known)


def _retire_unseen(island: Island, placeholders: Placeholders, done: Refreshed) -> None:
    seen = {placeholder.run for placeholder in placeholders.all() if placeholder.disks}
    for run in island.presented():
        if run in seen:
            continue
        try:
            island.retire(run)
            done.retired.append(run)
        except AtollError as error:
            done.kept.append(f"Run {run} is still on the island: {error}")
