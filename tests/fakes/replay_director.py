"""The director's capture of one guest in a process that can be killed; storage and vCenter follow orders.

It asks over a pipe and does as it is answered: `placement` (before the hold; `good` or `bad`) and
`snapshot` (`done` or `refused`). At the end it says `end`, what the point may be called, or the error.
"""

import multiprocessing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from atoll.director.capture import Means, capture
from atoll.director.policy import HoldPolicy
from atoll.guests import channel, connection
from atoll.guests.authority import Credentials
from atoll.guests.channel import AgentChannel
from atoll.guests.registry import EnrolledAgent
from atoll.model.errors import AtollError, StorageUnreachableError
from atoll.model.inventory import Placement, VirtualDisk, VirtualMachine
from atoll.model.plan import Plan, PlannedDisk, PlannedVm
from atoll.model.progress import Silent
from atoll.model.storage import GroupSnapshot

PATIENCE_SECONDS = 600.0
"""What anybody waits in real time. Time-outs are not what is looked at, and a machine may be slow."""

LEASE_SECONDS, BUDGET_SECONDS = 2 * PATIENCE_SECONDS, PATIENCE_SECONDS
"""By the replay's own clock; in real time the director waits as long for its guests."""


class _World:
    """Storage and vCenter, both asked over the pipe."""

    def __init__(self, pipe: Connection, place: Placement) -> None:
        self._pipe = pipe
        self._place = place
        self._asked = False

    def placement(self, uuids: object) -> dict[str, Placement]:
        good = self._asked or self._ask("placement") == "good"
        self._asked = True
        return {"uuid": self._place if good else replace(self._place, has_snapshot=True)}

    def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
        if self._ask("snapshot") == "refused":
            raise StorageUnreachableError("The storage refused.")
        return GroupSnapshot(group, name, 1.0, 2.0, 0.0, (("lun1", 1),))

    def _ask(self, what: str) -> str:
        self._pipe.send((what,))
        return str(self._pipe.recv())


def _direct(pipe: Connection, agent: EnrolledAgent, credentials: Credentials, run: str) -> None:
    channel._KEPT_THAW_SECONDS = channel._THAW_SECONDS = PATIENCE_SECONDS
    channel._STATUS_SECONDS = connection._CONNECT_SECONDS = PATIENCE_SECONDS
    disk = VirtualDisk(2000, "Hard disk 1", "ds1", "a/a.vmdk", 1, "persistent")
    vm = VirtualMachine("vm-1", "uuid", "a", "esx1", True, False, "debian", (disk,), False, "")
    planned = PlannedVm(vm, (PlannedDisk(disk, "prod", "vmfs", ("lun1",)),), True)
    place = Placement("esx1", ("ds1",), ((2000, "ds1", "a/a.vmdk"),), True, False)
    world = _World(pipe, place)
    means = Means({"uuid": AgentChannel(agent, credentials)}, world, world.placement, None)
    policy = HoldPolicy(lease_seconds=LEASE_SECONDS, budget_seconds=BUDGET_SECONDS, moves=0)
    try:
        made = capture(Plan(run, (planned,), ()), "atoll", means, policy, Silent())
    except AtollError as error:
        pipe.send(("end", "", str(error)))
    else:
        proof = made.proofs["uuid"]
        pipe.send(("end", str(proof.consistency), "; ".join(proof.reasons)))


class Director:
    """The process, and the other end of its pipe."""

    _context = multiprocessing.get_context("forkserver")

    def __init__(self, agent: EnrolledAgent, credentials: Credentials, run: str) -> None:
        self._context.set_forkserver_preload([__name__])
        self._pipe, other = self._context.Pipe()
        self._process = self._context.Process(
            target=_direct, args=(other, agent, credentials, run), daemon=True
        )
        self._process.start()
        other.close()

    def asks(self, seconds: float) -> tuple[str, ...]:
        """What it says next."""
        assert self._pipe.poll(seconds), "the director says nothing"
        said = self._pipe.recv()
        assert isinstance(said, tuple)
        return said

    def answer(self, what: str) -> None:
        """Answer what it asked."""
        self._pipe.send(what)

    def kill(self) -> None:
        """As kill -9 does. Repeatable."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def fake_path() -> str:
    """Where this module lies, for processes that are to import it or its neighbours."""
    return str(Path(__file__).parent)
