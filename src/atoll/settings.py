"""Settings: one TOML file, secrets in files of their own."""

import os
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyAddress,
    ValidationError,
    model_validator,
)

from atoll.model.errors import ConfigurationError

SEARCH = (Path("atoll.toml"), Path("/etc/atoll/atoll.toml"))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VCenterSection(_Section):
    """Where vCenter is and who Atoll is there. The password is the first line of `password_file`.

    The certificate is checked against `ca_file`, or is the one whose SHA-256
    is `thumbprint`, or else against the system's authorities.
    """

    host: str
    port: int = 443
    user: str
    password_file: Path
    ca_file: Path | None = None
    thumbprint: str | None = None


class StorageSection(_Section):
    """A storage system. `root` is the embedded engine's pool directory, `portal_address` the one
    of this machine's addresses that hosts reach its LUNs at."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    driver: Literal["embedded"]
    root: Path
    reserve_bytes: int = Field(default=1 << 30, ge=0)
    durability: Literal["cache", "disk"] = "disk"
    portal_address: IPvAnyAddress = IPv4Address("127.0.0.1")


class RepositorySection(_Section):
    """Where restore points live and the file that holds the key."""

    location: str
    key_file: Path


class AgentsSection(_Section):
    """The directory of the director's certificate authority and the enrolled agents."""

    directory: Path


class DirectorSection(_Section):
    """How long guests may be held, and where runs are recorded."""

    state_directory: Path
    lease_seconds: float = Field(default=10.0, ge=1, le=60)
    budget_seconds: float = Field(default=5.0, gt=0, le=60)

    @model_validator(mode="after")
    def _lease_outlasts_budget(self) -> Self:
        """A guest's lease runs while others still use their budget."""
        if self.lease_seconds <= self.budget_seconds:
            raise ValueError("lease_seconds must be longer than budget_seconds")
        return self


class Settings(_Section):
    """The whole file."""

    vcenter: VCenterSection
    storage: tuple[StorageSection, ...]
    repository: RepositorySection
    agents: AgentsSection
    director: DirectorSection


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from `path`, $ATOLL_CONFIG, ./atoll.toml or /etc/atoll/atoll.toml.

    Relative paths inside are taken from the file's own directory. Raises
    ConfigurationError with the file and the first thing that is wrong in it.
    """
    source = _find(path)
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"Cannot read {source}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source} is not valid TOML: {error}.") from error
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{source}: {where}: {first['msg']}.") from error
    return _anchored(settings, source.resolve().parent)


def read_secret(path: Path) -> str:
    """The first line of a secret file; ConfigurationError when it cannot be read."""
    try:
        return path.read_text().splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"Cannot read the secret file {path}; it must exist and hold one line."
        ) from error


def _find(path: Path | None) -> Path:
    if path is not None:
        return path
    if given := os.environ.get("ATOLL_CONFIG"):
        return Path(given)
    for candidate in SEARCH:
        if candidate.exists():
            return candidate
    raise ConfigurationError(
        "No settings found: give --config FILE, set ATOLL_CONFIG, or write ./atoll.toml "
        "or /etc/atoll/atoll.toml (`atoll lab up` makes a whole site to try)."
    )


def _anchored(settings: Settings, base: Path) -> Settings:
    def at(path: Path) -> Path:
        return base / path

    vcenter, repository = settings.vcenter, settings.repository
    return settings.model_copy(
        update={
            "vcenter": vcenter.model_copy(
                update={
                    "password_file": at(vcenter.password_file),
                    "ca_file": at(vcenter.ca_file) if vcenter.ca_file else None,
                }
            ),
            "storage": tuple(
                system.model_copy(update={"root": at(system.root)}) for system in settings.storage
            ),
            "repository": repository.model_copy(
                update={
                    "location": repository.location
                    if "://" in repository.location
                    else str(at(Path(repository.location))),
                    "key_file": at(repository.key_file),
                }
            ),
            "agents": settings.agents.model_copy(
                update={"directory": at(settings.agents.directory)}
            ),
            "director": settings.director.model_copy(
                update={"state_directory": at(settings.director.state_directory)}
            ),
        }
    )
