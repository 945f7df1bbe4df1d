"""Runs whose snapshots the storage still has, found by what is written on them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from atoll.island.copy import SnapshotView, opened
from atoll.island.served import ServedVm, Snapshots, snapshot_vm
from atoll.model.certificate import Certificate, read_certificate
from atoll.model.errors import UnknownPointError
from atoll.model.storage import GroupSnapshot
from atoll.storage.interface import StorageEngine


@dataclass(frozen=True, slots=True)
class CapturedRun:
    """A run and its snapshots, one of each LUN group, in the order of the certificate."""

    certificate: Certificate
    snapshots: tuple[GroupSnapshot, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.certificate.run

    @property
    def taken_at(self) -> float:
        """When its first snapshot began, seconds since the epoch."""
        return min(snapshot.started_at for snapshot in self.snapshots)


def captured_runs(engine: StorageEngine) -> list[CapturedRun]:
    """Every run of which all snapshots are there, oldest first."""
    found: dict[str, tuple[Certificate, dict[str, GroupSnapshot]]] = {}
    for group in engine.groups():
        if group.clone_of is not None:
            continue
        for snapshot in engine.snapshots(group.name):
            certificate = read_certificate(engine.annotation(group.name, snapshot.name))
            if certificate is not None:
                _, taken = found.setdefault(certificate.run, (certificate, {}))
                taken[group.name] = snapshot
    runs = [
        CapturedRun(certificate, tuple(taken[group] for group in certificate.groups))
        for certificate, taken in found.values()
        if set(certificate.groups) <= set(taken)
    ]
    return sorted(runs, key=lambda run: (run.taken_at, run.name))


def find_run(engine: StorageEngine, reference: str) -> CapturedRun:
    """The run named so, or by the beginning of its name; `latest` is the newest.

    UnknownPointError when there is none or the beginning fits several.
    """
    runs = captured_runs(engine)
    if reference == "latest" and runs:
        return runs[-1]
    matches = [run for run in runs if run.name == reference] or [
        run for run in runs if reference and run.name.startswith(reference)
    ]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(run.name for run in (matches or runs)[-5:]) or "none"
    if matches:
        raise UnknownPointError(
            f"{reference!r} fits several runs, {known}; write more of the name."
        )
    raise UnknownPointError(
        f"The storage has no snapshots of a run {reference!r}; the newest it has are: {known}."
    )


@contextmanager
def run_vms(
    engine: StorageEngine, run: CapturedRun, since: CapturedRun | None = None
) -> Iterator[tuple[ServedVm, ...]]:
    """The VMs of a run's job, read from its snapshots, which are opened when first looked into.

    With `since`, an older run that the storage still has, their disks know what changed.
    """
    with ExitStack() as stack:
        snapshots = Snapshots(run.certificate, _views(engine, run, stack))
        older = Snapshots(since.certificate, _views(engine, since, stack)) if since else None
        yield tuple(snapshot_vm(vm, run.taken_at, snapshots, older) for vm in run.certificate.vms)


def _views(
    engine: StorageEngine, run: CapturedRun, stack: ExitStack
) -> Callable[[str], SnapshotView]:
    snapshots = {snapshot.group: snapshot for snapshot in run.snapshots}
    views: dict[str, SnapshotView] = {}
    opening = threading.Lock()
    disks = [disk for vm in run.certificate.vms for disk in vm.disks]

    def open_group(group: str) -> SnapshotView:
        own = [disk for disk in disks if disk.group == group]
        luns = sorted({lun for disk in own for lun in disk.luns})
        raw = sorted({disk.raw_lun for disk in own if disk.raw_lun})
        return stack.enter_context(opened(engine, snapshots[group], luns, raw))

    def view(group: str) -> SnapshotView:
        with opening:
            if group not in views:
                views[group] = open_group(group)
            return views[group]

    return view
