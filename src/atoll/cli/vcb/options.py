"""The commands' options, which look like getopt's: `-M 1`, `-M1`, `-sany:`."""

import getopt
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from atoll.model.errors import ConfigurationError
from atoll.recovery.hosted_vmdk import VmdkForm

DEFAULT_LEVEL, MAX_LEVEL = 3, 6
_CONNECTION = "h:u:p:L:"
_MODES = ("san", "nbd", "nbdssl", "hotadd", "cos")
_MOUNTER = """\
Usage: vcbMounter -a SEARCH -r DIRECTORY [-t file|fullvm] [-M 0|1] [-F 0|1] [-x none|DISK,…]
       vcbMounter -U DIRECTORY
  -a  the VM: name:NAME, uuid:UUID, moref:ID or powerstate:on|off, and only one may fit
  -r  the directory to make and export to
  -t  fullvm (default): the whole VM; file: its files, mounted
  -M  1: each disk in one file; 0 (default): in pieces below 2 GB
  -F  1: with every byte at its place; 0 (default): without what is zero
  -x  disks to leave out, by address (scsi0:1) or VMDK name; none (default)
  -U  take away what was exported to or mounted on the directory
  -L  how much to tell, 0 to 6 (default 3)
  -h, -u, -p, -m, -Q are taken and not used: Atoll's settings name vCenter and the storage."""
_VM_NAME = """\
Usage: vcbVmName -s SEARCH
  -s  any:, name:NAME, uuid:UUID, moref:ID or powerstate:on|off
  -L  how much to tell, 0 to 6 (default 3)
  -h, -u, -p are taken and not used: Atoll's settings name vCenter."""
_UTIL = """\
Usage: vcbUtil -c ping|vmfolders|resourcepools
  -c  ping: whether vCenter answers; vmfolders, resourcepools: their paths, for vcbRestore
  -L  how much to tell, 0 to 6 (default 3)
  -h, -u, -p are taken and not used: Atoll's settings name vCenter."""
_SNAP_ALL = """\
Usage: vcbSnapAll -a SEARCH -r DIRECTORY [-M 0|1] [-F 0|1] [-x none|DISK,…]
  -a  the VMs: any:, name:NAME, uuid:UUID, moref:ID or powerstate:on|off
  -r  a directory, in which each VM gets one of its name
  -M, -F, -x, -L as vcbMounter has them
  -h, -u, -p, -m, -Q are taken and not used: Atoll's settings name vCenter and the storage."""

_RESTORE = """\
Usage: vcbRestore -s DIRECTORY [-a CATALOG] [-b overwrite]
  -s  the directory of an export of vcbMounter -t fullvm
  -a  an alternate catalog: its lines take the place of those of the export's own
  -b  overwrite: delete the VM that has the name already, when the restored one is whole
  -L  how much to tell, 0 to 6 (default 3)
  -h, -u, -p, -m are taken and not used: Atoll's settings name vCenter, disks go through its API."""

_SPLIT_SPARSE = VmdkForm(monolithic=False, flat=False)


class Kind(StrEnum):
    """What an export is: `-t`."""

    FILE = "file"
    FULL_VM = "fullvm"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What vcbMounter and vcbSnapAll export, and where to. Credentials are not kept."""

    search: str
    directory: Path
    kind: Kind = Kind.FULL_VM
    form: VmdkForm = _SPLIT_SPARSE
    left_out: frozenset[str] = frozenset()
    level: int = DEFAULT_LEVEL


@dataclass(frozen=True, slots=True)
class UnmountOptions:
    """What `vcbMounter -U` takes away."""

    directory: Path
    level: int = DEFAULT_LEVEL


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What vcbVmName looks for."""

    search: str
    level: int = DEFAULT_LEVEL


@dataclass(frozen=True, slots=True)
class UtilOptions:
    """What vcbUtil is to do."""

    command: str
    level: int = DEFAULT_LEVEL


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What vcbRestore restores, and over what."""

    directory: Path
    alternate: Path | None = None
    overwrite: bool = False
    level: int = DEFAULT_LEVEL


class UsageError(ConfigurationError):
    """The command line cannot be understood; `usage` says how it goes."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


def mounter_options(words: Sequence[str]) -> ExportOptions | UnmountOptions:
    """Of vcbMounter. UsageError, as all here."""
    given = _given(words, f"{_CONNECTION}a:r:t:m:M:F:x:Q:U:", _MOUNTER)
    if "U" in given:
        return UnmountOptions(_directory(given, "U", _MOUNTER), _level(given, _MOUNTER))
    return _export(given, _MOUNTER)


def snap_all_options(words: Sequence[str]) -> ExportOptions:
    """Of vcbSnapAll."""
    return _export(_given(words, f"{_CONNECTION}a:r:m:M:F:x:Q:", _SNAP_ALL), _SNAP_ALL)


def vm_name_options(words: Sequence[str]) -> SearchOptions:
    """Of vcbVmName."""
    given = _given(words, f"{_CONNECTION}s:", _VM_NAME)
    return SearchOptions(_needed(given, "s", _VM_NAME), _level(given, _VM_NAME))


def util_options(words: Sequence[str]) -> UtilOptions:
    """Of vcbUtil."""
    given = _given(words, f"{_CONNECTION}c:", _UTIL)
    return UtilOptions(_needed(given, "c", _UTIL), _level(given, _UTIL))


def restore_options(words: Sequence[str]) -> RestoreOptions:
    """Of vcbRestore."""
    given = _given(words, f"{_CONNECTION}s:a:b:m:", _RESTORE)
    _choice(given, "m", _MODES, _RESTORE)
    if given.get("b", "overwrite") != "overwrite":
        raise UsageError(f"-b takes overwrite, not {given['b']!r}.", _RESTORE)
    return RestoreOptions(
        directory=_directory(given, "s", _RESTORE),
        alternate=_directory(given, "a", _RESTORE) if "a" in given else None,
        overwrite="b" in given,
        level=_level(given, _RESTORE),
    )


def _given(words: Sequence[str], accepted: str, usage: str) -> dict[str, str]:
    try:
        found, rest = getopt.getopt(list(words), accepted)
    except getopt.GetoptError as error:
        # Its message names the option and never a value, which could be the password.
        raise UsageError(f"The {error.msg}.", usage) from error
    if rest:
        raise UsageError(
            f"{len(rest)} word(s) follow the options; put a value with spaces in quotation marks.",
            usage,
        )
    return {name.removeprefix("-"): value for name, value in found}


def _export(given: dict[str, str], usage: str) -> ExportOptions:
    kind = _choice(given, "t", ("fullvm", "file"), usage)
    _choice(given, "m", _MODES, usage)
    _choice(given, "Q", ("1", "0"), usage)
    left_out = given.get("x", "none")
    return ExportOptions(
        search=_needed(given, "a", usage),
        directory=_directory(given, "r", usage),
        kind=Kind(kind),
        form=VmdkForm(
            monolithic=_choice(given, "M", ("0", "1"), usage) == "1",
            flat=_choice(given, "F", ("0", "1"), usage) == "1",
        ),
        left_out=frozenset(filter(None, left_out.split(","))) - {"none"},
        level=_level(given, usage),
    )


def _choice(given: dict[str, str], name: str, known: tuple[str, ...], usage: str) -> str:
    """The first one is the default."""
    value = given.get(name, known[0])
    if value not in known:
        raise UsageError(f"-{name} takes {' or '.join(known)}, not {value!r}.", usage)
    return value


def _level(given: dict[str, str], usage: str) -> int:
    return int(_choice({"L": given.get("L", str(DEFAULT_LEVEL))}, "L", _LEVELS, usage))


_LEVELS = tuple(map(str, range(MAX_LEVEL + 1)))


def _needed(given: dict[str, str], name: str, usage: str) -> str:
    if not given.get(name):
        raise UsageError(f"-{name} is missing.", usage)
    return given[name]


def _directory(given: dict[str, str], name: str, usage: str) -> Path:
    return Path(_needed(given, name, usage)).absolute()
