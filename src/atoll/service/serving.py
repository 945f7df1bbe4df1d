"""What `atoll mount` and its kin name: a run or a restore point, as VMs that can be read."""

from collections.abc import Iterator
from contextlib import contextmanager

from atoll.island.runs import find_run, run_vms
from atoll.island.served import ServedVm, point_vm
from atoll.model.errors import UnknownPointError
from atoll.service.site import Site


@contextmanager
def serving(site: Site, reference: str) -> Iterator[tuple[ServedVm, ...]]:
    """The VMs that a reference means, readable while the block lasts.

    `VM@RUN` is one restore point. `RUN`, the beginning of one, or `latest` is all
    VMs of a run: from its storage snapshots, which are kept meanwhile, and when
    those are gone from the repository. UnknownPointError when there is no such thing.
    """
    if "@" in reference:
        repository = site.repository()
        yield (point_vm(repository, repository.find(reference)),)
        return
    engine = site.engine()
    try:
        run = find_run(engine, reference)
    except UnknownPointError as error:
        yield _points(site, reference, error)
        return
    pinned = site.pins().reading([(taken.group, taken.name) for taken in run.snapshots])
    # Found again under the pin: it may have been deleted meanwhile.
    with pinned, run_vms(engine, find_run(engine, run.name)) as vms:
        yield vms


def _points(site: Site, reference: str, error: UnknownPointError) -> tuple[ServedVm, ...]:
    """All points of the run; the error as it was when the repository has none either."""
    repository = site.repository()
    points = repository.points()
    runs = sorted({point.run for point in points if point.run.startswith(reference)})
    if reference == "latest":
        runs = sorted({point.run for point in points})[-1:]
    if reference in runs:
        runs = [reference]
    if len(runs) > 1:
        raise UnknownPointError(
            f"{reference!r} fits several runs, {', '.join(runs[-5:])}; write more of the name."
        ) from error
    if not runs:
        raise error
    return tuple(point_vm(repository, point) for point in points if point.run == runs[0])
