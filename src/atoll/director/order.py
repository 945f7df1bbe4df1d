"""The order in which guests freeze: who feeds a database stops before the database does."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from atoll.model.errors import ConfigurationError
from atoll.model.plan import PlannedVm


def freezing_steps(
    vms: Sequence[PlannedVm], orders: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    """Instance UUIDs in steps: all of a step freeze at once, each step after the one before.

    Who is in no order freezes in the last step, and so for the shortest time. Names
    in `orders` that are not among `vms` are passed over. ConfigurationError when
    the orders contradict each other.
    """
    by_name = {each.vm.name: each.vm.instance_uuid for each in vms}
    uuids = [each.vm.instance_uuid for each in vms]
    after: dict[str, set[str]] = {uuid: set() for uuid in uuids}
    for order in orders:
        present = [by_name.get(name, name) for name in order]
        for first, second in pairwise(uuid for uuid in present if uuid in after):
            after[first].add(second)
    try:
        # What a VM must precede comes first here, so that distances from the end are known.
        latest_first = list(TopologicalSorter(after).static_order())
    except CycleError as error:
        names = {uuid: name for name, uuid in by_name.items()}
        circle = " before ".join(names[uuid] for uuid in reversed(error.args[1]))
        raise ConfigurationError(
            f"The orders to hold VMs in contradict each other ({circle}); correct "
            "[[director.order]] in the settings."
        ) from error
    distance = _distances(latest_first, after)
    steps = range(max(distance.values(), default=0), -1, -1)
    return tuple(tuple(uuid for uuid in uuids if distance[uuid] == step) for step in steps)


def _distances(latest_first: Sequence[str], after: Mapping[str, set[str]]) -> dict[str, int]:
    """How many steps come after each one's own."""
    distance: dict[str, int] = {}
    for uuid in latest_first:
        distance[uuid] = max((distance[later] + 1 for later in after[uuid]), default=0)
    return distance
