"""What every run begins with: a sound plan, a site in order, one hold, and certified snapshots."""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from atoll.director.capture import Capture, Means, capture, hold_name
from atoll.director.certificate import certificate
from atoll.director.plan import make_plan
from atoll.director.policy import HoldPolicy, Way
from atoll.director.snapshots import delete_snapshots
from atoll.director.ways import wayless
from atoll.guests.interface import GuestAgent
from atoll.model.errors import AgentUnavailableError, AtollError
from atoll.model.inventory import Inventory
from atoll.model.plan import Plan
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.service.journal import CopyOrder, Journal, RunRecord
from atoll.service.pins import Pins
from atoll.service.retire import clean_up, own_prefix
from atoll.service.site import Site
from atoll.storage.interface import StorageEngine

_UNDO_SECONDS = 60.0
"""For the storage to delete the snapshots of a run that failed; else the next start does."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that may hold its guests now. `prefix` is the site's own.

    `cleaned` is what earlier runs had left, a sentence each.
    """

    name: str
    plan: Plan
    means: Means
    policy: HoldPolicy
    engine: StorageEngine
    journal: Journal
    pins: Pins
    inventory: Inventory
    prefix: str
    cleaned: list[str]
    _following: ExitStack
    _pinned: ExitStack

    def hold(self, snapshot: str, progress: Progress) -> Capture:
        """Hold the guests and take the run's snapshots, called `snapshot`, with their certificate.

        Other runs leave the snapshots alone until this one is over. Waits for other holds of the
        same LUN groups. After it raised, call `undo`.
        """
        self.journal.begin(self._record())
        groups = self.plan.groups
        self._pinned.enter_context(self.pins.reading([(group, snapshot) for group in groups]))
        with self.journal.holding(groups, waits=lambda: progress.stage("", "turn")):
            held = capture(self.plan, snapshot, self.means, self.policy, progress)
        self._following.close()
        words = certificate(self.plan, held.proofs)
        for group in groups:
            self.engine.annotate_snapshot(group, snapshot, words)
        return held

    def copies(self, order: CopyOrder) -> None:
        """Record what is copied now, so that whoever comes after this process can go on with it."""
        self.journal.note(self._record(order))

    def _record(self, copying: CopyOrder | None = None) -> RunRecord:
        return RunRecord(
            run=self.name,
            vms=tuple(vm.vm.instance_uuid for vm in self.plan.vms),
            holds=tuple(hold_name(self.name, number) for number in range(self.policy.holds)),
            copying=copying,
        )

    def undo(self, snapshot: str, cause: BaseException) -> None:
        """Delete the run's snapshots and forget it; what cannot be done now the next start does."""
        try:
            delete_snapshots(self.engine, self.plan.groups, snapshot, _UNDO_SECONDS)
            self._pinned.close()
            for group in self.plan.groups:
                with self.pins.deleting(group, snapshot):
                    pass  # there is nothing left to pin
            self.journal.end(self.name)
        except AtollError as error:
            cause.add_note(f"Clearing up after it failed too: {error}")


def new_run() -> str:
    """A run's name: sorts by time, unique, and fit for storage and agents."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


@contextmanager
def prepared(
    site: Site,
    names: Sequence[str],
    points: Callable[[], Iterable[RestorePoint]] | None,
    progress: Progress,
) -> Iterator[PreparedRun]:
    """Plan a run of the named VMs and bring the site in order. Any number may be at work at once.

    `points` reads the repository's, None where there is no repository. Nothing is held before the
    plan is sound and the agents are known. Raises AtollError.
    """
    progress.stage("", "plan")
    identity = site.identity()
    engine = site.engine()
    agents = site.agents()
    vcenter = site.vcenter()
    journal = site.journal()
    run = new_run()
    with ExitStack() as pinned, ExitStack() as following:
        pinned.callback(journal.abandon, run)
        prefix = own_prefix(identity)
        vmware = vcenter.snapshots(identity)
        allowed = Way.VMWARE in site.hold.ways
        pins = site.pins()
        cleaned = clean_up(
            engine,
            journal,
            agents,
            prefix,
            points,
            pins,
            vmware if allowed else None,
            site.interrupted(),
        )
        with journal.tidying():
            cleaned += site.renew_agents()
        # What moves until the snapshot is there is then noticed without reading everything again.
        following.enter_context(vcenter.follow())
        inventory = vcenter.inventory()
        plan = make_plan(run, names, inventory, engine.groups(), agents.keys())
        if not site.hold.accept_less:
            _require_ways(plan, agents, site.hold)
        for group in plan.groups:
            engine.require_room(group)
        yield PreparedRun(
            name=run,
            plan=plan,
            means=Means(agents, engine, vcenter.placement, vmware),
            policy=site.hold,
            engine=engine,
            journal=journal,
            pins=pins,
            inventory=inventory,
            prefix=prefix,
            cleaned=cleaned,
            _following=following,
            _pinned=pinned,
        )


def _require_ways(plan: Plan, agents: Mapping[str, GuestAgent], policy: HoldPolicy) -> None:
    bare = wayless(plan, agents.keys(), policy)
    if bare:
        raise AgentUnavailableError(
            f"No agent is enrolled for {', '.join(bare)}, so the point would be crash-consistent "
            "only; enrol one, let VMware snapshots hold VMs without one (`ways` in [director]), or "
            "run again with --accept-less."
        )
