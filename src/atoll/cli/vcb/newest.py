"""Which run a VM is served from: the newest whose snapshots the storage still has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from atoll.island.runs import captured_runs
from atoll.island.served import ServedVm
from atoll.model.errors import AtollError, ConfigurationError, UnknownPointError
from atoll.model.inventory import VirtualMachine
from atoll.service.serving import serving
from atoll.service.site import Site


@dataclass(frozen=True, slots=True)
class Source:
    """A reference that `serving` takes, and what the VM was called then."""

    reference: str
    name: str


def newest(site: Site, vm: VirtualMachine) -> Source:
    """The newest run with the VM; UnknownPointError when there is none.

    Without one on the storage it is the VM's newest restore point in the repository.
    """
    for run in reversed(captured_runs(site.engine())):
        for known in run.certificate.vms:
            if known.instance_uuid == vm.instance_uuid:
                return Source(run.name, known.name)
    advice = "run `atoll capture` or `atoll backup` with it before this command."
    try:
        points = site.repository().points()
    except ConfigurationError as error:  # most likely a site that captures only
        raise UnknownPointError(
            f"The storage has no run with {vm.name}, and there is no repository to look in "
            f"({str(error).rstrip('.')}); {advice}"
        ) from error
    except AtollError as error:
        error.add_note(f"The storage has no run with {vm.name}.")
        raise
    own = [point for point in points if point.instance_uuid == vm.instance_uuid]
    if not own:
        raise UnknownPointError(
            f"Neither the storage nor the repository has a run with {vm.name}; {advice}"
        )
    last = max(own, key=lambda point: point.created_at)
    return Source(f"{last.vm}@{last.run}", last.vm)


@contextmanager
def served(site: Site, vm: VirtualMachine) -> Iterator[ServedVm]:
    """The VM as its newest run has it, readable while the block lasts."""
    reference = newest(site, vm).reference
    with serving(site, reference) as vms:
        for known in vms:
            if known.instance_uuid == vm.instance_uuid:
                yield known
                return
        raise UnknownPointError(f"{reference} does not hold {vm.name} any more; try again.")
