"""The agent's configuration file, `/etc/atoll/agent.json`, as enrolment writes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.errors import ConfigError
from atoll_agent.modules import MODULES, find_module
from atoll_agent.vmware.times import VmwareTimes, parse_times

DEFAULT_PATH = Path("/etc/atoll/agent.json")
DEFAULT_PORT = 8443

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
    "vmware",
}
# What a guest lacks that no director was introduced to.
_UNENROLLED = {
    "name": "this guest",
    "instance_uuid": "unknown",
    "certificate": "none",
    "key": "none",
    "authority": "none",
}


@dataclass(frozen=True)
class Config:
    """The whole file. Relative paths are taken from the file's directory.

    `freeze_only` None means every writable ext4, XFS and btrfs file system.
    `vmware` is how long a hold may take that VMware Tools asks for.
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
    vmware: VmwareTimes = field(default_factory=VmwareTimes)


def load_config(path: Path) -> Config:
    """Read the file; ConfigError says which key is wrong."""
    return _config(_read(path), path)


def load_unenrolled(path: Path) -> Config:
    """The same where the guest need not be enrolled: without the file everything is as by default."""
    return _config({**_UNENROLLED, **(_read(path) if path.exists() else {})}, path)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        given = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}; enrol this guest.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(given, dict) or set(given) - _KEYS:
        raise ConfigError(f"{path} must be an object with keys among {', '.join(sorted(_KEYS))}.")
    return given


def _config(given: Mapping[str, Any], path: Path) -> Config:
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
        vmware=parse_times(given.get("vmware", {})),
    )


def _application(entry: Any) -> ApplicationConfig:
    kinds = ", ".join(module.kind for module in MODULES)
    if not isinstance(entry, dict):
        raise ConfigError("Each of applications must be an object.")
    module = find_module(_text(entry, "kind"))
    if module is None:
        raise ConfigError(f"applications: kind must be one of {kinds}, not {entry['kind']!r}.")
    options = {key: value for key, value in entry.items() if key not in {"kind", "name"}}
    if unknown := sorted(set(options) - set(module.keys)):
        raise ConfigError(
            f"applications: the keys of {module.kind} must be among kind, name, "
            f"{', '.join(module.keys)}, not {', '.join(unknown)}."
        )
    for key, value in options.items():
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ConfigError(f"applications: {key} must be a text or a number.")
    if "port" in options:
        _number(options, "port", 0)
    witness = options.get("witness")
    # A database client takes a backslash for a command of its own, some of which run programs.
    if witness is not None and ("\\" in str(witness) or ";" in str(witness)):
        raise ConfigError("applications: witness must be one statement without ; and backslash.")
    return ApplicationConfig(kind=module.kind, name=_text(entry, "name"), options=options)


def _text(given: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = given.get(key, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} must be a text.")
    return value


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
