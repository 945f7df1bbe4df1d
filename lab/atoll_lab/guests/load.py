"""A constant load on the databases of lab guests, and what they have committed."""

from collections.abc import Callable
from dataclasses import dataclass

from atoll_lab.guests.control import GuestShell
from atoll_lab.guests.errors import LabGuestError

LAB = "/usr/lib/lab"
RUN = "/run/lab"  # in memory: the load's own log is not load on the disks


@dataclass(frozen=True, slots=True)
class Committed:
    """The ledger as a new session sees it: highest id and number of rows."""

    highest: int
    rows: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Transactions a second in the second that ended at `at` (guest clock, since the epoch)."""

    at: float
    per_second: float


class DatabaseLoad:
    """A load that runs inside a guest until it is stopped or its time is over."""

    def __init__(
        self, shell: GuestShell, name: str, command: Callable[[int, int], str], query: str
    ) -> None:
        """`command` makes the load's command line from seconds and rate; `query` reads the ledger."""
        self._shell = shell
        self._name = name
        self._command = command
        self._query = query

    def start(self, seconds: int, rate: int = 0) -> None:
        """Start it; `rate` limits transactions a second, 0 is as fast as it goes.

        A load already running is stopped first. LabGuestError when it ends at once.
        """
        self.stop()
        command = self._command(seconds, rate)
        run = f"{RUN}/{self._name}"
        self._shell.check(
            f"mkdir -p {RUN}; cd /tmp; setsid {command} >{run}.log 2>&1 </dev/null & "
            f"echo $! >{run}.pid; sleep 0.5; kill -0 $! || {{ cat {run}.log >&2; exit 1; }}"
        )

    def stop(self) -> None:
        """End it; harmless when none runs."""
        run = f"{RUN}/{self._name}"
        # setsid made it leader of a group of its own, so its children go with it.
        self._shell.check(
            f"[ -e {run}.pid ] || exit 0; pid=$(cat {run}.pid); kill -TERM -$pid 2>/dev/null; "
            f"while kill -0 -$pid 2>/dev/null; do sleep 0.1; done; rm {run}.pid"
        )

    def rates(self) -> list[Rate]:
        """Throughput second by second since the last start."""
        log = self._shell.check(f"cat {RUN}/{self._name}.log")
        return [rate for line in log.splitlines() if (rate := _rate(line)) is not None]

    def committed(self) -> Committed:
        """What the ledger holds now."""
        output = self._shell.check(self._query).split()
        if len(output) != 2:
            raise LabGuestError(f"The ledger answered {output}; two numbers were expected.")
        return Committed(int(output[0]), int(output[1]))


def postgres_load(shell: GuestShell, clients: int = 2) -> DatabaseLoad:
    """The load of `db1`: pgbench's own transaction plus a row in `ledger`, in database `bench`."""
    user = "setpriv --reuid postgres --regid postgres --init-groups"

    def command(seconds: int, rate: int) -> str:
        limit = f" -R {rate}" if rate else ""
        return (
            f"{user} pgbench -n -c {clients} -j 1 -T {seconds}{limit} -P 1 --progress-timestamp "
            f"-f {LAB}/ledger.sql bench"
        )

    query = "SELECT coalesce(max(id), 0), count(*) FROM ledger"
    ask = f"cd /tmp; {user} psql -XAtq -F ' ' bench -c '{query}'"
    return DatabaseLoad(shell, "pgbench", command, ask)


def mariadb_load(shell: GuestShell) -> DatabaseLoad:
    """The load of `app1`: one client selling articles in database `shop`."""
    return DatabaseLoad(
        shell,
        "shop",
        lambda seconds, rate: f"python3 {LAB}/shop_load.py {seconds} {rate}",
        "mariadb -BN shop -e 'SELECT coalesce(max(id), 0), count(*) FROM ledger'",
    )


def _rate(line: str) -> Rate | None:
    """A line like `progress: 1700000000.0 s, 232.0 tps, lat 8.6 ms`; None for any other."""
    words = line.split()
    if len(words) < 5 or words[0] != "progress:" or not words[4].startswith("tps"):
        return None
    return Rate(float(words[1]), float(words[3]))
