"""From a run's snapshots to its restore points, whether it was held just now or by a process that died."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from atoll.island.copy import copy_vm, opened
from atoll.model.plan import PlannedDisk
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.service.cataloguing import cataloguer, no_catalogue
from atoll.service.journal import CopyOrder
from atoll.service.site import Site
from atoll.storage.federation import system_with


def copy_run(
    site: Site,
    order: CopyOrder,
    snapshots: Mapping[str, GroupSnapshot],
    parents: Mapping[str, RestorePoint],
    progress: Progress,
) -> list[RestorePoint]:
    """Copy what an order says from its snapshots, by LUN group; the points, not yet committed.

    `parents` are by instance UUID, and certain to stay. What another process had copied for the same order
    is not read again. Where the site wants it, the points have catalogues of their files.
    """
    plan, engine, repository, slots = order.plan, site.engine(), site.repository(), site.slots()
    progress.stage("", "map")

    def turn(vm: str, disk: PlannedDisk) -> AbstractContextManager[None]:
        system = system_with(engine, disk.group)
        return slots.copying(system, disk.disk.datastore, partial(progress.note, vm))

    with ExitStack() as stack:
        views = {
            group: stack.enter_context(
                opened(engine, snapshot, plan.luns(group), plan.raw_luns(group))
            )
            for group, snapshot in snapshots.items()
        }
        draft = None
        if site.resume_seconds:
            touch = partial(site.journal().touch, plan.run)
            draft = repository.draft(plan.run, site.resume_seconds, put=touch)
        catalogued = cataloguer(repository) if site.catalogue else no_catalogue
        progress.stage("", "copy")
        return [
            copy_vm(
                vm,
                views,
                order.proofs[vm.vm.instance_uuid],
                plan.run,
                repository,
                parents.get(vm.vm.instance_uuid),
                progress,
                partial(turn, vm.vm.name),
                catalogued,
                draft,
            )
            for vm in plan.vms
        ]
