"""A run without a copy: guests held, snapshots taken and kept, for other software to read."""

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.island.runs import captured_runs
from atoll.model.consistency import ConsistencyProof
from atoll.model.errors import AtollError
from atoll.model.plan import Bystander
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.service.holding import PreparedRun, prepared
from atoll.service.retire import capture_prefix, cloned_snapshots
from atoll.service.site import Site


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """What a capture made. `proofs` are by VM name, `retired` the runs whose snapshots went.

    `cleaned` is what earlier runs had left, `leftovers` what this one could not tidy, a sentence
    each.
    """

    run: str
    proofs: dict[str, ConsistencyProof]
    bystanders: tuple[Bystander, ...]
    snapshots: tuple[GroupSnapshot, ...]
    hold_seconds: float
    retired: tuple[str, ...]
    cleaned: tuple[str, ...]
    leftovers: tuple[str, ...]


def capture_vms(
    site: Site, names: Sequence[str], progress: Progress, *, keep: int
) -> CaptureResult:
    """Hold the named VMs as one run, snapshot their LUN groups, and keep the snapshots.

    Of each VM the `keep` newest captures stay (1 at least), and those that the island shows or
    somebody reads. Raises AtollError; then no guest is held and no snapshot of the run remains.
    """
    if keep < 1:
        raise ValueError("a capture that is not kept is of no use")
    repository = site.repository() if site.has_repository else None
    points = repository.points if repository else None
    with prepared(site, names, points, progress) as run:
        snapshot = capture_prefix(run.prefix) + run.name
        try:
            held = run.hold(snapshot, progress)
            # From here on it is a capture that was made, and no remains of a run.
            run.journal.end(run.name)
        except BaseException as error:
            run.undo(snapshot, error)
            raise
        progress.stage("", "retire")
        cleaned = list(run.cleaned)
        retired: list[str] = []
        try:
            with run.journal.tidying():
                retired += _retire(run, keep)
        except AtollError as error:
            # The capture is there; what could not be tidied the next one tidies.
            cleaned.append(f"Old captures could not be deleted yet: {error}")
    progress.stage("", "done")
    return CaptureResult(
        run=run.name,
        proofs={vm.vm.name: held.proofs[vm.vm.instance_uuid] for vm in run.plan.vms},
        bystanders=run.plan.bystanders,
        snapshots=tuple(held.snapshots.values()),
        hold_seconds=held.hold_seconds,
        retired=tuple(retired),
        cleaned=tuple(cleaned),
        leftovers=held.leftovers,
    )


def _retire(run: PreparedRun, keep: int) -> list[str]:
    """Delete captures that are no VM's newest; the names of those runs of which nothing is left.

    A run is kept whole or not at all. What is left of one that was only partly deleted goes too.
    """
    engine, prefix = run.engine, capture_prefix(run.prefix)
    cloned = cloned_snapshots(engine.groups())
    kept: dict[str, int] = {}
    wanted = set(cloned)
    retiring: dict[tuple[str, str], str] = {}
    for each in reversed(captured_runs(engine)):
        snapshots = {(snapshot.group, snapshot.name) for snapshot in each.snapshots}
        if not all(name.startswith(prefix) for _, name in snapshots):
            continue
        vms = [vm.instance_uuid for vm in each.certificate.vms]
        if snapshots & cloned or any(kept.get(vm, 0) < keep for vm in vms):
            wanted |= snapshots
        else:
            retiring |= dict.fromkeys(snapshots, each.name)
        for vm in vms:
            kept[vm] = kept.get(vm, 0) + 1
    left = set()
    for group in engine.groups():
        for snapshot in engine.snapshots(group.name):
            which = (group.name, snapshot.name)
            if not snapshot.name.startswith(prefix) or which in wanted:
                continue
            with run.pins.deleting(*which) as unread:
                if unread:
                    engine.delete_snapshot(*which)
                else:
                    left.add(retiring.get(which, ""))
    return sorted(set(retiring.values()) - left)
