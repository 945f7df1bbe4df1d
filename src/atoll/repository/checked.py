"""When each pack was last read and found whole, so that a verify can go on where it was, or a share a day.

A file of this machine, not of the repository: losing it costs nothing but that packs are read again.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from atoll.model.errors import ConfigurationError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS packs (name TEXT PRIMARY KEY, whole_at REAL);
CREATE TABLE IF NOT EXISTS unfinished (since REAL);
"""


class CheckLog:
    """The record of one repository. `whole_at` is empty for a pack that was found damaged."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """ConfigurationError if the file cannot be used."""
        self._path = path
        self._clock = clock
        with self._database() as database:
            database.executescript(_SCHEMA)

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=60)) as database, database:
                yield database
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"The record of verified packs {self._path} cannot be used ({error}); remove it, and "
                "the next verify starts from the beginning."
            ) from error

    def share(self, sizes: Mapping[str, int], days: int) -> list[str]:
        """The packs to read today so that all are read in so many days: longest unread first.

        `sizes` are those of all packs. Damaged and new ones come before all others.
        """
        known = self._known()
        wanted = -(-sum(sizes.values()) // days)
        chosen: list[str] = []
        for pack in sorted(sizes, key=lambda pack: (known.get(pack) or 0.0, pack)):
            if wanted <= 0:
                break
            chosen.append(pack)
            wanted -= sizes[pack]
        return chosen

    def begin(self, sizes: Mapping[str, int], *, resume: bool = False) -> list[str]:
        """Begin to read everything; the packs to read.

        With `resume` it goes on with what a reading that was cut short had not read, if one was.
        """
        with self._database() as database:
            rows = database.execute("SELECT since FROM unfinished").fetchall() if resume else []
            if not rows:
                database.execute("DELETE FROM unfinished")
                rows = [(self._clock(),)]
                database.execute("INSERT INTO unfinished VALUES (?)", rows[0])
        known = self._known()
        return [pack for pack in sorted(sizes) if (known.get(pack) or 0.0) < rows[0][0]]

    def damaged(self, sizes: Mapping[str, int]) -> list[str]:
        """The packs that were not whole when they were last read."""
        return sorted(name for name, at in self._known().items() if at is None and name in sizes)

    def note(self, pack: str, *, whole: bool) -> None:
        """A pack was read."""
        with self._database() as database:
            database.execute(
                "INSERT OR REPLACE INTO packs VALUES (?, ?)",
                (pack, self._clock() if whole else None),
            )

    def end(self, sizes: Mapping[str, int]) -> None:
        """What was begun is done; packs that are gone are forgotten."""
        with self._database() as database:
            database.execute("DELETE FROM unfinished")
            gone = [(pack,) for pack in self._known() if pack not in sizes]
            database.executemany("DELETE FROM packs WHERE name = ?", gone)

    def oldest(self, sizes: Mapping[str, int]) -> float | None:
        """Since when all packs have been found whole at least once; None if not all have been."""
        known = self._known()
        times = [known.get(pack) for pack in sizes]
        found = [when for when in times if when is not None]
        return min(found, default=None) if len(found) == len(times) else None

    def _known(self) -> dict[str, float | None]:
        with self._database() as database:
            return dict(database.execute("SELECT name, whole_at FROM packs").fetchall())
