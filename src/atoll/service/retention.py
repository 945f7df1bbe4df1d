"""Restore points that the policy lets go of, or that somebody names, and the space they took."""

import time
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass

from atoll.model.errors import AtollError, PointHeldError
from atoll.model.points import RestorePoint
from atoll.model.retention import Holds, Verdict, judge
from atoll.repository.holds import refuse_held
from atoll.repository.prune import PrunePlan, PruneReport
from atoll.service.site import Site


@dataclass(frozen=True, slots=True)
class PrunePreview:
    """What a prune would do; `damaged_holds` are objects that hold every point."""

    verdicts: tuple[Verdict, ...]
    damaged_holds: tuple[str, ...]
    plan: PrunePlan


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What a prune did. `verdicts` are of all points there were, those that are gone included."""

    verdicts: tuple[Verdict, ...]
    damaged_holds: tuple[str, ...]
    forgotten: tuple[RestorePoint, ...]
    space: PruneReport


def preview(site: Site, progress: Callable[[int], None] | None = None) -> PrunePreview:
    """What a prune would do now. Nothing is changed; `progress` is told pages followed."""
    repository = site.repository()
    holds = repository.holds()
    verdicts = _judged(site, repository.points(), holds)
    going = {verdict.point.id for verdict in verdicts if verdict.goes}
    return PrunePreview(tuple(verdicts), holds.damaged, repository.prune_plan(going, progress))


def prune(
    site: Site,
    forgotten: Callable[[Sequence[RestorePoint]], None],
    progress: Callable[[int], None] | None = None,
) -> PruneResult:
    """Forget what the policy lets go of, tell `forgotten`, then give back the space.

    Judged once nobody else can forget, so that no VM loses its last point to two prunes at once.
    RunConflictError while another forgets or prunes; RepositoryDamagedError if not all points can be
    read, and then none is forgotten.
    """
    repository = site.repository()
    verdicts: list[Verdict] = []
    damaged: list[str] = []

    def going(points: Sequence[RestorePoint], holds: Holds) -> Set[str]:
        verdicts.extend(_judged(site, points, holds))
        damaged.extend(holds.damaged)
        return {verdict.point.id for verdict in verdicts if verdict.goes}

    gone = repository.forget_chosen(going)
    forgotten(gone)
    space = repository.prune(progress=progress)
    return PruneResult(tuple(verdicts), tuple(damaged), tuple(gone), space)


def forget(site: Site, ids: Collection[str], *, even_newest: bool = False) -> list[RestorePoint]:
    """Forget points by id, all of them or none.

    PointHeldError if one is on hold, or is the newest of a VM that vCenter still has, or may have
    if it cannot be asked, unless `even_newest`.
    """
    repository = site.repository()
    wanted = frozenset(ids)
    present = None if even_newest else _present_vms(site)

    def named(points: Sequence[RestorePoint], holds: Holds) -> Set[str]:
        refuse_held(holds, [point for point in points if point.id in wanted], time.time())
        newest = {point.instance_uuid: point for point in points}  # they come oldest first
        for point in newest.values():
            if even_newest or point.id not in wanted:
                continue
            if present is None or point.instance_uuid in present or point.vm in present:
                asked = (
                    "" if present is not None else ", for all that could be learned from vCenter"
                )
                raise PointHeldError(
                    f"{point.vm}@{point.run} is the newest restore point of a VM that is still "
                    f"there{asked}, so nothing was forgotten; back it up first, or give --even-newest."
                )
        return wanted

    return repository.forget_chosen(named)


def _judged(site: Site, points: Sequence[RestorePoint], holds: Holds) -> list[Verdict]:
    now = time.time()
    locked = now - site.lock_days * 86400 if site.lock_days else None
    return judge(points, site.retention, now, holds, locked)


def _present_vms(site: Site) -> Set[str] | None:
    """Instance UUIDs of the VMs that vCenter has, names of those it left out; None if it is away."""
    try:
        inventory = site.vcenter().inventory()
    except AtollError:
        return None
    return {vm.instance_uuid for vm in inventory.vms} | {vm.name for vm in inventory.left_out}
