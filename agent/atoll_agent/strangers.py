"""Database servers that run in this guest and that nobody told the agent about.

One of them is never held, and a restore point that says that its applications
were held must not pass over it.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from atoll_agent.application import Application, HeldApplication, Testimony
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules import MODULES, VSS
from atoll_agent.servers import PROC, matches, processes
from atoll_agent.system import is_windows

_ANY_SERVER = tuple(pattern for module in MODULES for pattern in module.processes)


class Stranger:
    """Servers of a kind beyond those that were found; can only be reported as not held."""

    name = "others"

    def __init__(self, kind: str, running: int, known: int) -> None:
        self.kind = kind
        self.detail = (
            f"{running} servers run in this guest and the agent knows {known}; "
            "name the others in agent.json"
        )

    def remark(self, deadline: Deadline) -> str:
        return f"not held: {self.detail}"

    def prepare(self, deadline: Deadline) -> None:
        """Nothing can be asked of it."""

    def recover(self, deadline: Deadline) -> None:
        """Nothing was ever changed in it."""

    def open(self, deadline: Deadline) -> list[int]:
        raise ApplicationError(self.detail)

    def flush_again(self, deadline: Deadline) -> None:
        raise ApplicationError(self.detail)

    def still_ready(self, deadline: Deadline) -> bool:
        return False

    def hold(self, deadline: Deadline) -> HeldApplication:
        return HeldApplication(self.kind, self.name, False, "", None, 0.0, self.detail)

    def still_held(self, deadline: Deadline) -> str:
        return ""

    def close(self) -> None:
        """Nothing is open."""

    def testify(self, deadline: Deadline) -> Testimony:
        return Testimony(self.kind, self.name, False, None, None, None, "", self.detail)


def find_strangers(known: Sequence[Application], running: Counter[str]) -> list[Stranger]:
    """One for each kind of server of which more run than are known, containers included."""
    found = Counter(application.kind for application in known)
    return [
        Stranger(kind, running[kind], found[kind])
        for kind in sorted(running)
        if running[kind] > found[kind]
    ]


def count_servers(proc: Path = PROC) -> Counter[str]:
    """How many servers of each kind run; of one that is many processes, the first alone counts.

    Windows is asked as a whole, through VSS.
    """
    if is_windows():
        return Counter({VSS: 1})
    everyone = processes(proc)
    kinds = {
        process.pid: module.kind
        for process in everyone
        if matches(process, _ANY_SERVER)
        for module in MODULES
        if matches(process, module.processes)
    }
    names = {process.pid: process.name for process in everyone}
    return Counter(
        kinds[process.pid]
        for process in everyone
        if process.pid in kinds
        and not (
            kinds.get(process.parent) == kinds[process.pid]
            and names[process.parent] == process.name
        )
    )
