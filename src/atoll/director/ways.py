"""Which way each VM of a run is held, and why not a better one."""

from collections.abc import Collection

from atoll.director.policy import HoldPolicy, Way
from atoll.model.errors import AtollError
from atoll.model.plan import Plan, PlannedVm


class Ways:
    """The way each VM goes now. One that fails takes the policy's next, as long as there is one."""

    def __init__(self, plan: Plan, agents: Collection[str], policy: HoldPolicy) -> None:
        """`agents` are the instance UUIDs of VMs that have one."""
        self._vms = {vm.vm.instance_uuid: vm for vm in plan.vms}
        self._left = {uuid: open_ways(vm, agents, policy) for uuid, vm in self._vms.items()}
        self._failures: dict[str, list[AtollError]] = {uuid: [] for uuid in self._vms}

    def way(self, uuid: str) -> Way | None:
        """How the VM is to be held now; None: no way is left, or it does not run."""
        left = self._left[uuid]
        return left[0] if left else None

    def going(self, way: Way) -> list[PlannedVm]:
        """The VMs that go this way, in the plan's order."""
        return [vm for uuid, vm in self._vms.items() if self.way(uuid) is way]

    def fail(self, uuid: str, error: AtollError) -> bool:
        """Its way failed; whether it has another."""
        self._failures[uuid].append(error)
        self._left[uuid] = self._left[uuid][1:]
        return bool(self._left[uuid])

    @property
    def last(self) -> set[str]:
        """The VMs that have no way after the one they go."""
        return {uuid for uuid, left in self._left.items() if len(left) <= 1}

    def failures(self, uuid: str) -> tuple[AtollError, ...]:
        """Why the ways before failed, in their order."""
        return tuple(self._failures[uuid])


def open_ways(vm: PlannedVm, agents: Collection[str], policy: HoldPolicy) -> tuple[Way, ...]:
    """The policy's ways that a VM can go: none when it does not run, directly with an agent only."""
    if not vm.vm.powered_on:
        return ()
    direct = vm.vm.instance_uuid in agents
    return tuple(way for way in policy.ways if way is not Way.DIRECT or direct)


def wayless(plan: Plan, agents: Collection[str], policy: HoldPolicy) -> list[str]:
    """Names of the VMs that run and can be held in none of the policy's ways."""
    return [vm.vm.name for vm in plan.vms if vm.vm.powered_on and not open_ways(vm, agents, policy)]
