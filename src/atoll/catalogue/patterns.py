"""What is looked for: fragments and globs of names and paths, and bounds of sizes and times."""

import re
from dataclasses import dataclass
from functools import cached_property

from atoll.catalogue.entries import CatalogueEntry
from atoll.catalogue.pages import NamesPage
from atoll.filesystems.interface import EntryKind

_SPECIAL = re.compile(r"[*?\[]")
_CHARACTER = rb"(?:[\xc2-\xf4][\x80-\xbf]{1,3}|[^\x00/])"


@dataclass(frozen=True)
class Pattern:
    """A name as people look for it.

    Without `*`, `?` and `[` it is a part of a name; else the whole name must fit. With a slash, what is
    before the last one is about the directory: the end of its path, or with wildcards all of it, `*`
    within one component and `**` over several. ASCII letters are alike in both cases unless `case`.
    """

    text: str
    case: bool = False

    @property
    def _wild(self) -> bool:
        return bool(_SPECIAL.search(self.text))

    @cached_property
    def _parts(self) -> tuple[bytes | None, bytes]:
        text = self.text.encode("utf-8", "surrogateescape")
        if not self.case:
            text = text.lower()
        if b"/" not in text:
            return None, text
        directory, _, name = text.rpartition(b"/")
        return directory, name

    @cached_property
    def literals(self) -> list[bytes]:
        """Runs of bytes, in lower case, that any name that fits must have."""
        name = self._parts[1].lower()
        if not self._wild:
            return [name]
        return [run for run in re.split(rb"\[[^\]]*\]?|[*?]", name) if run]

    @cached_property
    def _name(self) -> re.Pattern[bytes]:
        """Finds names that fit in a text of names, each between two zeros."""
        name = self._parts[1]
        if self._wild:
            body = _glob(name, whole=False)
        else:
            body = re.escape(name) + rb"[^\x00]*"  # the beginning of a name below that directory
        return re.compile(rb"(?<=\x00)" + body + rb"(?=\x00)", re.DOTALL)

    @cached_property
    def _directory(self) -> re.Pattern[bytes] | None:
        directory = self._parts[0]
        if directory is None:
            return None
        if not self._wild:
            return re.compile(rb".*" + re.escape(directory), re.DOTALL)
        if not directory.startswith(b"/") and directory != b"":
            return re.compile(rb"(?:.*/)?" + _glob(directory, whole=True), re.DOTALL)
        return re.compile(_glob(directory, whole=True), re.DOTALL)

    @property
    def of_paths(self) -> bool:
        """Whether directories count, too."""
        return self._parts[0] is not None

    def rows(self, page: NamesPage, prefix: bytes = b"") -> list[int]:
        """The rows of a page whose names, and directories, fit; directories are below `prefix`."""
        text = page.text if self.case else page.text.lower()
        found = self._places(text)
        if not found:
            return []
        rows = page.ends.searchsorted(found).tolist()
        if self._directory is None:
            return [row for row in rows if page.name(row)]
        fits: dict[bytes, bool] = {}
        kept = []
        for row in rows:
            directory = page.directory(row)
            if directory not in fits:
                said = prefix + directory
                said = said if self.case else said.lower()
                fits[directory] = self._directory.fullmatch(said) is not None
            if fits[directory] and page.name(row):
                kept.append(row)
        return kept

    def _places(self, text: bytes) -> list[int]:
        """Where names that fit lie: a place in each."""
        if self._wild or self._parts[0] is not None:
            return [match.start() - 1 for match in self._name.finditer(b"\0" + text)]
        name = self._parts[1]
        found, at = [], text.find(name)
        while at >= 0:
            found.append(at)
            # What else is in the same name says nothing new.
            at = text.find(name, text.index(b"\0", at + len(name)) + 1) if name else -1
        return found


def _glob(pattern: bytes, *, whole: bool) -> bytes:
    """A regular expression; `**` crosses slashes in whole paths."""
    out, at = b"", 0
    while at < len(pattern):
        one = pattern[at : at + 1]
        at += 1
        if one == b"*":
            if whole and pattern[at : at + 1] == b"*":
                at += 1
                out += rb"[^\x00]*"
            else:
                out += rb"[^\x00/]*"
        elif one == b"?":
            out += _CHARACTER
        elif one == b"[" and (end := pattern.find(b"]", at + 1)) > 0:
            inside = pattern[at:end]
            at = end + 1
            negated = inside[:1] in (b"!", b"^")
            body = re.sub(rb"([\\\]\[^&~|])", rb"\\\1", inside[1:] if negated else inside)
            out += b"[" + (rb"^\x00/" if negated else b"") + body + b"]"
        else:
            out += re.escape(one)
    return out


@dataclass(frozen=True, slots=True)
class Bounds:
    """What else an entry must be. Sizes in bytes, times (of content, mtime) in seconds since the epoch.

    `larger` and `smaller` are for files alone. `below` is a directory as the user names it.
    """

    larger: int | None = None
    smaller: int | None = None
    newer: float | None = None
    older: float | None = None
    kind: EntryKind | None = None
    below: str = ""

    def fits(self, entry: CatalogueEntry) -> bool:
        """Whether an entry is within them."""
        if self.kind is not None and entry.kind is not self.kind:
            return False
        if (self.larger, self.smaller) != (None, None) and entry.kind is not EntryKind.FILE:
            return False
        return (
            (self.larger is None or entry.size > self.larger)
            and (self.smaller is None or entry.size < self.smaller)
            and (self.newer is None or entry.mtime_ns >= self.newer * 1e9)
            and (self.older is None or entry.mtime_ns < self.older * 1e9)
            and (not self.below or _is_below(entry.path, self.below))
        )


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
