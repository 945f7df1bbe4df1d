"""The agent's configuration file, `/etc/atoll/agent.json`, as enrolment writes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll_agent.errors import ConfigError

DEFAULT_PATH = Path("/etc/atoll/agent.json")
DEFAULT_PORT = 8443

_KINDS = ("postgresql", "mariadb")
_KEYS = {
    "name",
    "instance_uuid",
    "address",
    "port",
    "certificate",
    "key",
    "authority",
    "applications",
    "discover",
    "freeze_only",
    "freeze_never",
}
_APPLICATION_KEYS = {
    "kind",
    "name",
    "socket",
    "data_directory",
    "port",
    "owner",
    "database",
    "witness",
}


@dataclass(frozen=True)
class ApplicationConfig:
    """One application by hand, or what to add to a discovered one of the same kind and name.

    `socket` is PostgreSQL's socket directory or MariaDB's socket file,
    `data_directory` PostgreSQL's cluster; None means discovered. `owner` is the
    user to connect as. `witness` is one read-only SQL statement, run in
    `database`, whose answer goes into the proof.
    """

    kind: str
    name: str
    socket: str | None
    data_directory: str | None
    port: int
    owner: str | None
    database: str | None
    witness: str | None


@dataclass(frozen=True)
class Config:
    """The whole file. Relative paths are taken from the file's directory.

    `freeze_only` None means every writable ext4, XFS and btrfs file system.
    """

    name: str
    instance_uuid: str
    address: str
    port: int
    certificate: Path
    key: Path
    authority: Path
    applications: tuple[ApplicationConfig, ...]
    discover: bool
    freeze_only: tuple[str, ...] | None
    freeze_never: tuple[str, ...]


def load_config(path: Path) -> Config:
    """Read the file; ConfigError says which key is wrong."""
    try:
        given = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}; enrol this guest.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(given, dict) or set(given) - _KEYS:
        raise ConfigError(f"{path} must be an object with keys among {', '.join(sorted(_KEYS))}.")
    base = path.resolve().parent
    only = given.get("freeze_only")
    return Config(
        name=_text(given, "name"),
        instance_uuid=_text(given, "instance_uuid"),
        address=_text(given, "address", "0.0.0.0"),  # noqa: S104 - a guest is asked from outside
        port=_number(given, "port", DEFAULT_PORT),
        certificate=base / _text(given, "certificate"),
        key=base / _text(given, "key"),
        authority=base / _text(given, "authority"),
        applications=tuple(_application(entry) for entry in _list(given, "applications")),
        discover=bool(given.get("discover", True)),
        freeze_only=None if only is None else _texts(given, "freeze_only"),
        freeze_never=_texts(given, "freeze_never"),
    )


def _application(entry: Any) -> ApplicationConfig:
    if not isinstance(entry, dict) or set(entry) - _APPLICATION_KEYS:
        raise ConfigError(
            f"Each of applications must be an object with keys among "
            f"{', '.join(sorted(_APPLICATION_KEYS))}."
        )
    kind = _text(entry, "kind")
    if kind not in _KINDS:
        raise ConfigError(f"applications: kind must be one of {', '.join(_KINDS)}, not {kind!r}.")
    witness = _optional(entry, "witness")
    # A database client takes a backslash for a command of its own, some of which run programs.
    if witness is not None and ("\\" in witness or ";" in witness):
        raise ConfigError("applications: witness must be one statement without ; and backslash.")
    return ApplicationConfig(
        kind=kind,
        name=_text(entry, "name"),
        socket=_optional(entry, "socket"),
        data_directory=_optional(entry, "data_directory"),
        port=_number(entry, "port", 5432),
        owner=_optional(entry, "owner"),
        database=_optional(entry, "database"),
        witness=witness,
    )


def _text(given: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = given.get(key, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} must be a text.")
    return value


def _optional(given: Mapping[str, Any], key: str) -> str | None:
    return None if given.get(key) is None else _text(given, key)


def _number(given: Mapping[str, Any], key: str, default: int) -> int:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ConfigError(f"{key} must be a port number.")
    return value


def _list(given: Mapping[str, Any], key: str) -> list[Any]:
    value = given.get(key, [])
    if not isinstance(value, list):
        raise ConfigError(f"{key} must be a list.")
    return value


def _texts(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _list(given, key)
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{key} must be a list of mount points.")
    return tuple(values)
