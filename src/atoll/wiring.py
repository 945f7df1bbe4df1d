"""Settings to a working site: the only place that picks drivers."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from atoll.director.policy import HoldPolicy, Way
from atoll.guests.authority import Authority
from atoll.guests.channel import open_channels
from atoll.guests.interface import GuestAgent
from atoll.guests.registry import AgentRegistry
from atoll.guests.renewal import renew_due
from atoll.model.errors import ConfigurationError, StorageUnreachableError
from atoll.model.limits import Limits
from atoll.repository.append_only import AppendOnlyStore
from atoll.repository.keys import (
    KeyFile,
    KeySource,
    Passphrase,
    RecoveryKey,
    create_key_file,
)
from atoll.repository.pacing import Pace, paced_reader, paced_store
from atoll.repository.places import create_place, open_place
from atoll.repository.repository import Repository
from atoll.repository.store import ObjectStore
from atoll.service.copying import CopyPlace
from atoll.service.identity import site_identity
from atoll.service.journal import Journal
from atoll.service.keys import check_passphrase
from atoll.service.pins import Pins
from atoll.service.site import IslandPlace, RecoveryPlace, Site
from atoll.service.slots import Slots
from atoll.settings import (
    LimitsSection,
    RepositorySection,
    Settings,
    StorageSection,
    absolute_paths,
    load_settings,
    needed,
    read_secret,
)
from atoll.storage.backend import Chap, Driver
from atoll.storage.drivers import DRIVERS
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.federation import as_one
from atoll.storage.interface import StorageEngine
from atoll.storage.limits import Allowances
from atoll.storage.records import Records
from atoll.vsphere.client import VCenter
from atoll.vsphere.settings import VCenterSettings

_RECORDS = "records.sqlite"
_NO_LIMITS = LimitsSection()
_PASSPHRASE, _RECOVERY_KEY = "ATOLL_PASSPHRASE", "ATOLL_RECOVERY_KEY"


def open_site(
    config: Path | None = None, *, accept_less: bool = False, copy: str | None = None
) -> Site:
    """The site of a settings file; each part is opened when it is first used, and then kept.

    With the name of a `copy`, that is the site's repository.
    """
    settings = _settings(config, copy)
    opened = ExitStack()
    limits = Limits(**settings.limits.model_dump())

    def vcenter() -> VCenter:
        return opened.enter_context(open_vcenter(settings))

    def repository() -> Repository:
        return opened.enter_context(open_repository(settings))

    def key_id() -> str:
        return site.repository().key_id

    def identity() -> str:
        return site_identity(
            settings.director.state_directory, key_id if settings.repository else None
        )

    site = Site(
        vcenter=cache(vcenter),
        engine=cache(partial(open_engine, settings)),
        repository=cache(repository),
        has_repository=settings.repository is not None,
        identity=cache(identity),
        agents=cache(partial(open_agents, settings)),
        renew_agents=partial(renew_agents, settings),
        authority=cache(partial(open_authority, settings)),
        journal=cache(partial(Journal, settings.director.state_directory)),
        pins=cache(partial(Pins, settings.director.state_directory)),
        slots=cache(partial(Slots, settings.director.state_directory, limits)),
        limits=limits,
        retention=settings.retention.retention(),
        lock_days=settings.repository.lock_days if settings.repository else None,
        hold=HoldPolicy(
            lease_seconds=settings.director.lease_seconds,
            budget_seconds=settings.director.budget_seconds,
            vmware_seconds=settings.director.vmware_seconds,
            accept_less=accept_less,
            ways=tuple(Way(way) for way in settings.director.ways),
            orders=tuple(order.vms for order in settings.director.order),
        ),
        resume_seconds=settings.director.resume_hours * 3600,
        island=_island(settings),
        work_directory=settings.director.state_directory / "work",
        catalogue=settings.backup.catalogue,
        recovery=RecoveryPlace(
            settings.recovery.directory,
            tuple(map(str, settings.recovery.addresses)),
            settings.recovery.ports,
            settings.recovery.durability,
        ),
        close=opened.close,
        copy=copy,
    )
    return site


def _settings(config: Path | None, copy: str | None) -> Settings:
    settings = load_settings(config)
    return settings if copy is None else settings.at_copy(copy)


def _island(settings: Settings) -> IslandPlace | None:
    island = settings.island
    return IslandPlace(island.host, island.home, island.folder) if island else None


def open_engine(settings: Settings) -> StorageEngine:
    """The site's storage: its one system, or all of them as one."""
    return as_one([open_system(system, settings.limits) for system in settings.storage])


def open_system(system: StorageSection, limits: LimitsSection = _NO_LIMITS) -> ManagedEngine:
    """The engine of one storage system, which was prepared by `create_system`."""
    driver, options = _driver(system)
    directory = driver.state_directory(system.name, options)
    records = Records(directory / _RECORDS)
    if not records.exists():
        raise StorageUnreachableError(
            f"Storage system {system.name} has no records in {directory}; mount what is to be "
            "there, or prepare the system with `atoll storage init`."
        )
    return ManagedEngine(
        system.name,
        records,
        lambda place: driver.open_backend(system.name, options, place),
        _rules(system),
        partial(
            paced_reader,
            pace=Pace(limits.read_mib_per_second, limits.read_operations_per_second),
        ),
    )


def create_storage(config: Path | None, system: str | None) -> list[tuple[str, Path]]:
    """Prepare the storage systems of the settings, or the one named: names and records' places."""
    systems = load_settings(config).storage
    chosen = [one for one in systems if system in (None, one.name)]
    if not chosen:
        raise ConfigurationError(
            f"The settings have no storage system {system}, only "
            f"{', '.join(one.name for one in systems)}."
        )
    return [(one.name, create_system(one)) for one in chosen]


def create_system(system: StorageSection) -> Path:
    """Prepare a storage system, once for all; where its records are. Repeatable."""
    driver, options = _driver(system)
    driver.create(system.name, options)
    directory = driver.state_directory(system.name, options)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    Records(directory / _RECORDS).create()
    return directory


def _driver(system: StorageSection) -> tuple[Driver, Any]:
    """The driver's module and its settings, read and anchored."""
    if system.driver not in DRIVERS:
        raise ConfigurationError(
            f"Storage system {system.name}: there is no driver {system.driver!r}, only "
            f"{', '.join(sorted(DRIVERS))}."
        )
    driver = cast(Driver, import_module(DRIVERS[system.driver]))
    try:
        options = driver.Settings.model_validate(system.options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"Storage system {system.name}: {where}: {first['msg']}."
        ) from error
    return driver, absolute_paths(options, system.base)


def _rules(system: StorageSection) -> Rules:
    mutual = system.mutual_chap
    accounts = {
        account.initiator: Chap(
            account.user,
            _chap_secret(account.secret_file),
            mutual.user if mutual else None,
            _chap_secret(mutual.secret_file) if mutual else None,
        )
        for account in system.chap
    }
    return Rules(
        Allowances(
            system.reserve_bytes,
            system.overcommit_limit,
            system.warning_used,
            system.critical_used,
        ),
        grace_seconds=system.grace_days * 86400,
        chap=accounts,
    )


def _chap_secret(path: Path) -> str:
    secret = read_secret(path)
    if not 12 <= len(secret) <= 16 or not secret.isascii() or "," in secret:
        raise ConfigurationError(
            f"The CHAP secret in {path} must have 12 to 16 ASCII characters and no comma."
        )
    return secret


def open_vcenter(settings: Settings) -> VCenter:
    """A session with vCenter."""
    vcenter = needed(settings.vcenter, "vcenter")
    return VCenter.connect(
        VCenterSettings(
            host=vcenter.host,
            port=vcenter.port,
            user=vcenter.user,
            password=read_secret(vcenter.password_file),
            ca_file=vcenter.ca_file,
            thumbprint=vcenter.thumbprint,
        )
    )


def open_repository(settings: Settings) -> Repository:
    """The repository, which must exist (`atoll repo init`)."""
    repository = needed(settings.repository, "repository")
    return _opened(settings, repository, key_source(repository))


def _opened(settings: Settings, repository: RepositorySection, key: KeySource) -> Repository:
    store = open_place(repository.location, repository.access)
    if repository.append_only:
        store = AppendOnlyStore(store)
    return Repository(
        _paced(settings, store),
        key,
        compression=repository.compression,
        caches=repository.cache_directory,
    )


def _paced(settings: Settings, store: ObjectStore) -> ObjectStore:
    return paced_store(store, Pace(settings.limits.write_mib_per_second))


def open_copy(config: Path | None, location: str) -> Repository:
    """A copy of the site's repository with the same key: one of the settings, by its name, or a place."""
    settings = load_settings(config)
    if any(copy.name == location for copy in settings.copies):
        return open_repository(settings.at_copy(location))
    repository = needed(settings.repository, "repository")
    return Repository.open(location, key_source(repository), access=repository.access)


def copy_places(
    config: Path | None, names: Sequence[str], to: str | None = None, key_file: Path | None = None
) -> list[CopyPlace]:
    """The copies of the settings that are named, or all; or the place `to`, which a key file may open.

    A place that is not in the settings but in a bucket is reached as the repository is.
    """
    settings = load_settings(config)
    if to is None:
        chosen = [settings.copy_named(name) for name in names] or settings.copies
        return [_place(settings, copy.name, copy, own_key=copy.own_key) for copy in chosen]
    repository = needed(settings.repository, "repository")
    there = repository.model_copy(
        update={"location": to, "key_file": key_file, "passphrase_file": None}
    )
    return [_place(settings, to, there, own_key=key_file is not None)]


def _place(
    settings: Settings, name: str, section: RepositorySection, *, own_key: bool
) -> CopyPlace:
    """Its own key opens it, never that of the environment, which is the repository's."""

    def store() -> ObjectStore:
        # Nothing of a mirror is for append_only to refuse: it only adds.
        make = open_place if own_key else create_place
        return _paced(settings, make(section.location, section.access))

    def repository() -> Repository:
        return _opened(settings, section, _named_key(section))

    return CopyPlace(name, section.location, store, repository if own_key else None)


def open_objects(config: Path | None, copy: str | None = None) -> ObjectStore:
    """The objects of the repository, for what needs no key."""
    repository = needed(_settings(config, copy).repository, "repository")
    return open_place(repository.location, repository.access)


def create_repository(
    config: Path | None, passphrase: str | None = None, label: str = "", copy: str | None = None
) -> Repository:
    """A new repository where the settings say, with a new key file unless there is one.

    A passphrase that is given takes the place of what the settings name.
    """
    repository = needed(_settings(config, copy).repository, "repository")
    if passphrase is not None:
        return Repository.create(
            repository.location, Passphrase(passphrase), label=label, access=repository.access
        )
    key = key_source(repository)
    if isinstance(key, Passphrase):
        check_passphrase(key.text)
    if isinstance(key, KeyFile) and not key.path.exists():
        key = create_key_file(key.path)
    return Repository.create(repository.location, key, label=label, access=repository.access)


def key_source(repository: RepositorySection) -> KeySource:
    """What opens the repository: what the environment has, for emergencies, or the settings name.

    Whatever opens it, nothing is asked and nothing is read from the command line.
    """
    if text := os.environ.get(_RECOVERY_KEY):
        return RecoveryKey(text)
    if text := os.environ.get(_PASSPHRASE):
        return Passphrase(text)
    return _named_key(repository)


def _named_key(repository: RepositorySection) -> KeySource:
    if repository.passphrase_file:
        return Passphrase(read_secret(repository.passphrase_file))
    if repository.key_file:
        return KeyFile(repository.key_file)
    raise ConfigurationError(
        "The settings name no key of the repository; write key_file or passphrase_file into "
        f"[repository], or set {_PASSPHRASE} or {_RECOVERY_KEY}."
    )


def open_agents(settings: Settings) -> Mapping[str, GuestAgent]:
    """A channel to each enrolled agent by instance UUID; nothing is connected yet.

    None without a section [agents].
    """
    if settings.agents is None:
        return {}
    registry = AgentRegistry(settings.agents.directory)
    agents = registry.agents()
    if not agents:
        return {}
    return open_channels(agents, open_authority(settings).credentials, registry)


def renew_agents(settings: Settings) -> list[str]:
    """Renew the agents' certificates that are due: a sentence for each that could not be."""
    if settings.agents is None or not AgentRegistry(settings.agents.directory).agents():
        return []
    return [
        f"The certificate of {one.name}'s agent was not renewed: {one.problem}"
        for one in renew_due(open_authority(settings))
        if one.problem
    ]


def open_authority(settings: Settings) -> Authority:
    """The agents' certificate authority, made on first use."""
    agents = needed(settings.agents, "agents")
    return Authority.open(agents.directory, agents.certificate_days)
