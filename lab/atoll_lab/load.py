"""The loads of a whole lab: pgbench on db1, a shop on app1."""

from types import TracebackType

from atoll_lab.guests.load import DatabaseLoad, mariadb_load, postgres_load
from atoll_lab.running import Lab

LONG_SECONDS = 6 * 3600


class Loads:
    """Both loads, started and stopped together; stopped at the latest when the block ends."""

    def __init__(self, lab: Lab) -> None:
        self.postgresql: DatabaseLoad = postgres_load(lab.shell("db1"))
        self.mariadb: DatabaseLoad = mariadb_load(lab.shell("app1"))

    def __enter__(self) -> "Loads":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, rate: int = 0) -> None:
        """Start both; `rate` limits transactions a second, 0 is as fast as they go."""
        self.postgresql.start(LONG_SECONDS, rate)
        self.mariadb.start(LONG_SECONDS, rate)

    def stop(self) -> None:
        """Stop both; harmless when they are not running."""
        self.postgresql.stop()
        self.mariadb.stop()
