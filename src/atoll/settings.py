"""Settings: one TOML file, secrets in files of their own."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyAddress,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from atoll.director.policy import LEASE_MARGIN_SECONDS, lease_shortfall
from atoll.model.errors import ConfigurationError
from atoll.model.limits import DEFAULTS
from atoll.model.retention import Keep, Retention, VmRule
from atoll.repository.chunks import DEFAULT_LEVEL
from atoll.repository.s3_access import SCHEME, LockMode, S3Access

Section = TypeVar("Section")
Model = TypeVar("Model", bound=BaseModel)
Place = TypeVar("Place", bound="RepositorySection")

_MOST_KEPT = 1_000_000
_SPAN = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_SPAN_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
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


class ChapSection(_Section):
    """The account of one iSCSI initiator; the secret is the first line of its file."""

    initiator: str
    user: str = Field(pattern=r"^[A-Za-z0-9.:_-]{1,63}$")
    secret_file: Path


class MutualChapSection(_Section):
    """What targets answer with to the initiators that have an account."""

    user: str = Field(pattern=r"^[A-Za-z0-9.:_-]{1,63}$")
    secret_file: Path


class StorageSection(BaseModel):
    """A storage system: what holds for all, and in `options` what its driver knows.

    In the file both stand side by side. `reserve_bytes` stay free in the pool;
    `overcommit_limit` is the most that LUNs may promise for each byte there is.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    driver: str
    reserve_bytes: int = Field(default=1 << 30, ge=0)
    overcommit_limit: float | None = Field(default=None, gt=0)
    warning_used: float = Field(default=0.80, gt=0, le=1)
    critical_used: float = Field(default=0.90, gt=0, le=1)
    grace_days: float = Field(default=7.0, ge=0)
    chap: tuple[ChapSection, ...] = ()
    mutual_chap: MutualChapSection | None = None

    _base: Path = PrivateAttr(default=Path())

    @property
    def base(self) -> Path:
        """The directory that relative paths in `options` are taken from."""
        return self._base

    def set_base(self, base: Path) -> None:
        """Say where the file lies."""
        self._base = base

    @property
    def options(self) -> dict[str, object]:
        """The driver's own settings, as the file has them."""
        return dict(self.model_extra or {})


class RepositorySection(_Section):
    """Where restore points live, and the file that holds the key or, in its first line, a passphrase.

    Without either, the environment must have a passphrase or a recovery key.
    """

    location: str
    # A folder of it for each repository; what is in it may be deleted at any time.
    cache_directory: Path = Path("/var/cache/atoll")
    key_file: Path | None = None
    passphrase_file: Path | None = None
    compression: int = Field(default=DEFAULT_LEVEL, ge=1, le=19)
    append_only: bool = False
    # For buckets; see atoll.repository.s3_access.
    endpoint: str | None = None
    region: str | None = None
    credentials_file: Path | None = None
    ca_file: Path | None = None
    allow_http: bool = False
    lock_days: int | None = Field(default=None, ge=1, le=36_500)
    lock_mode: LockMode = "compliance"

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key_file and self.passphrase_file:
            raise ValueError("give key_file or passphrase_file, not both")
        return self

    @model_validator(mode="after")
    def _bucket_settings_for_buckets(self) -> Self:
        """A directory that was believed to be locked is worse than an error."""
        given = self.model_fields_set & {field.name for field in dataclasses.fields(S3Access)}
        if given and not self.location.startswith(f"{SCHEME}://"):
            raise ValueError(f"{min(given)} is for buckets (s3://BUCKET/PREFIX) alone")
        return self

    @property
    def access(self) -> S3Access:
        """How to reach the bucket, if the location is one."""
        return S3Access(
            self.endpoint,
            self.region,
            self.credentials_file,
            self.ca_file,
            self.allow_http,
            self.lock_days,
            self.lock_mode,
        )


class CopySection(RepositorySection):
    """A second place for restore points: a mirror, or a repository that has the key named here."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")

    @property
    def own_key(self) -> bool:
        """Whether it names a key, so that it is no mirror."""
        return bool(self.key_file or self.passphrase_file)


class _KeepSection(_Section):
    """How many points stay by which rule; see `model.retention`."""

    keep_last: int | None = Field(default=None, ge=1, le=_MOST_KEPT)
    keep_hourly: int | None = Field(default=None, ge=1, le=_MOST_KEPT)
    keep_daily: int | None = Field(default=None, ge=1, le=_MOST_KEPT)
    keep_weekly: int | None = Field(default=None, ge=1, le=_MOST_KEPT)
    keep_monthly: int | None = Field(default=None, ge=1, le=_MOST_KEPT)
    keep_yearly: int | None = Field(default=None, ge=1, le=_MOST_KEPT)
    keep_within: str | None = None

    @field_validator("keep_within")
    @classmethod
    def _is_span(cls, text: str | None) -> str | None:
        if text is not None and not _SPAN.fullmatch(text):
            raise ValueError("write it like 36h, 14d or 8w")
        return text

    def keep(self) -> Keep:
        """The same for the model."""
        within = _SPAN.fullmatch(self.keep_within) if self.keep_within else None
        return Keep(
            last=self.keep_last or 0,
            hourly=self.keep_hourly or 0,
            daily=self.keep_daily or 0,
            weekly=self.keep_weekly or 0,
            monthly=self.keep_monthly or 0,
            yearly=self.keep_yearly or 0,
            within_seconds=int(within[1]) * _SPAN_HOURS[within[2]] * 3600.0 if within else 0.0,
        )


class RetentionRuleSection(_KeepSection):
    """Other rules for VMs whose names match; `keep_all` where none of their points may go."""

    vms: tuple[str, ...] = Field(min_length=1)
    keep_all: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.keep_all == (not self.keep().everything):
            raise ValueError(
                "a rule needs keep_all = true, or at least one of keep_last and the like"
            )
        return self


class RetentionSection(_KeepSection):
    """Which restore points `atoll repo prune` leaves; days begin at midnight of `time_zone`."""

    time_zone: str = "UTC"
    rules: tuple[RetentionRuleSection, ...] = ()

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no time zone; write it like Europe/Berlin") from error
        return name

    def retention(self) -> Retention:
        """The same for the model."""
        rules = tuple(VmRule(rule.vms, rule.keep()) for rule in self.rules)
        return Retention(self.keep(), rules, ZoneInfo(self.time_zone))


class AgentsSection(_Section):
    """The directory of the director's certificate authority and the enrolled agents.

    Certificates are valid for `certificate_days` and renewed when a third of that is left.
    """

    directory: Path
    certificate_days: float = Field(default=90, ge=3, le=3650)


class OrderSection(_Section):
    """VMs, by name or instance UUID, in the order in which they are held; let go in the reverse."""

    vms: tuple[str, ...] = Field(min_length=2)


class DirectorSection(_Section):
    """How long guests may be held and in which order, and where runs are recorded."""

    state_directory: Path = Path("/var/lib/atoll/director")
    lease_seconds: float = Field(default=10.0, ge=1, le=60)
    budget_seconds: float = Field(default=5.0, gt=0, le=60 - LEASE_MARGIN_SECONDS)
    ways: tuple[Literal["direct", "vmware"], ...] = Field(default=("direct",), min_length=1)
    # The agent thaws what VMware Tools did not by itself after 300 s, and must not be in the middle.
    vmware_seconds: float = Field(default=120.0, ge=1, le=240)
    order: tuple[OrderSection, ...] = ()
    # A run that was cut off while it copied is kept for so long: its snapshots take room.
    resume_hours: float = Field(default=48.0, ge=0, le=24 * 365)

    @model_validator(mode="after")
    def _lease_outlasts_budget(self) -> Self:
        """A guest's lease runs while others still use their budget."""
        if shortfall := lease_shortfall(self.lease_seconds, self.budget_seconds):
            raise ValueError(shortfall)
        return self


class BackupSection(_Section):
    """What restore points are made of beside disks: `catalogue`, what files there are."""

    catalogue: bool = True


class IslandSection(_Section):
    """The ESX host that shows runs to backup software.

    `home` names the datastore of the placeholders' own files, `folder` the folder that they are in.
    """

    host: str
    home: str
    folder: str = "Atoll"


class RecoverySection(_Section):
    """Where recoveries from the repository keep what their VMs write, and where hosts reach them.

    `durability` says when a write counts as written: on the `disk`, or in this machine's `cache`
    until the guest flushes.
    """

    directory: Path | None = None
    addresses: tuple[IPvAnyAddress, ...] = Field(default=(ip_address("127.0.0.1"),), min_length=1)
    ports: tuple[int, int] = (22260, 23259)
    durability: Literal["disk", "cache"] = "disk"


class LimitsSection(_Section):
    """How much is done at once, by all commands on this machine together, and how fast by each."""

    host_tasks: int = Field(default=DEFAULTS.host_tasks, ge=1, le=64)
    host_luns: int = Field(default=DEFAULTS.host_luns, ge=1, le=1024)
    storage_disks: int = Field(default=DEFAULTS.storage_disks, ge=1, le=1024)
    datastore_disks: int = Field(default=DEFAULTS.datastore_disks, ge=1, le=1024)
    proxy_disks: int = Field(default=DEFAULTS.proxy_disks, ge=1, le=1024)
    proxy_served: int = Field(default=DEFAULTS.proxy_served, ge=1, le=1024)
    read_mib_per_second: float = Field(default=DEFAULTS.read_mib_per_second, ge=0, le=1e6)
    read_operations_per_second: float = Field(
        default=DEFAULTS.read_operations_per_second, ge=0, le=1e6
    )
    write_mib_per_second: float = Field(default=DEFAULTS.write_mib_per_second, ge=0, le=1e6)


class Settings(_Section):
    """The whole file. A machine that only serves storage has `storage` alone; see `needed`."""

    storage: tuple[StorageSection, ...] = Field(min_length=1)
    vcenter: VCenterSection | None = None
    repository: RepositorySection | None = None
    copies: tuple[CopySection, ...] = ()
    retention: RetentionSection = RetentionSection()
    agents: AgentsSection | None = None
    director: DirectorSection = DirectorSection()
    backup: BackupSection = BackupSection()
    island: IslandSection | None = None
    recovery: RecoverySection = RecoverySection()
    limits: LimitsSection = LimitsSection()

    @model_validator(mode="after")
    def _storage_names_differ(self) -> Self:
        names = [system.name for system in self.storage]
        if len(set(names)) < len(names):
            raise ValueError("two storage systems have the same name")
        return self

    @model_validator(mode="after")
    def _copy_names_differ(self) -> Self:
        names = [copy.name for copy in self.copies]
        if len(set(names)) < len(names):
            raise ValueError("two copies have the same name")
        return self

    def copy_named(self, name: str) -> CopySection:
        """One of the copies; ConfigurationError if there is none of that name."""
        for copy in self.copies:
            if copy.name == name:
                return copy
        known = ", ".join(copy.name for copy in self.copies) or "none"
        raise ConfigurationError(
            f"The settings have no copy {name!r}; in [[copies]] there is {known}."
        )

    def at_copy(self, name: str) -> Self:
        """The same site with a copy in the place of its repository; a mirror has its key too."""
        copy = self.copy_named(name)
        if self.repository is not None and not copy.own_key:
            keys = {
                "key_file": self.repository.key_file,
                "passphrase_file": self.repository.passphrase_file,
            }
            copy = copy.model_copy(update=keys)
        return self.model_copy(update={"repository": copy})


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
        raise ConfigurationError(
            f"{source}: {where}: {first['msg'].removeprefix('Value error, ')}."
        ) from error
    return _anchored(settings, source.resolve().parent)


def needed(section: Section | None, name: str) -> Section:
    """A section of the settings; ConfigurationError when the file has none of that name."""
    if section is None:
        raise ConfigurationError(
            f"The settings have no section [{name}], which this command needs; add it "
            "(docs/operations/site.md shows a whole file)."
        )
    return section


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
    """The same with every path absolute; those of storage drivers are anchored where they are read."""
    anchored: Settings = _absolute(settings, base)
    if anchored.repository is not None:
        repository = _placed(anchored.repository, base)
        anchored = anchored.model_copy(update={"repository": repository})
    copies = tuple(_placed(copy, base) for copy in anchored.copies)
    anchored = anchored.model_copy(update={"copies": copies})
    for system in anchored.storage:
        system.set_base(base)
    return anchored


def _placed(repository: Place, base: Path) -> Place:
    if "://" in repository.location:
        return repository
    return repository.model_copy(update={"location": str(base / repository.location)})


def absolute_paths(model: Model, base: Path) -> Model:
    """A copy of `model` whose relative paths, at any depth, are taken from `base`."""
    copy: Model = _absolute(model, base)
    return copy


def _absolute(value: Any, base: Path) -> Any:
    if isinstance(value, Path):
        return base / value
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        update = {name: _absolute(getattr(value, name), base) for name in fields}
        return value.model_copy(update=update)
    if isinstance(value, Mapping):
        return {key: _absolute(each, base) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_absolute(each, base) for each in value)
    return value
