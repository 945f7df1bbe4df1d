"""Settings to a working site: the only place that picks drivers."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

from atoll.director.capture import HoldPolicy
from atoll.guests.authority import Authority
from atoll.guests.channel import open_channels
from atoll.guests.interface import GuestAgent
from atoll.guests.registry import AgentRegistry
from atoll.model.errors import ConfigurationError
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.repository import Repository
from atoll.service.journal import Journal
from atoll.service.site import Site
from atoll.settings import Settings, StorageSection, load_settings, read_secret
from atoll.storage.drivers.embedded import EmbeddedEngine, create_pool
from atoll.storage.interface import StorageEngine
from atoll.vsphere.client import VCenter
from atoll.vsphere.settings import VCenterSettings


def open_site(config: Path | None = None, *, accept_less: bool = False) -> Site:
    """The site of a settings file; each part is opened when it is first used, and then kept."""
    settings = load_settings(config)
    opened = ExitStack()

    def vcenter() -> VCenter:
        return opened.enter_context(open_vcenter(settings))

    def repository() -> Repository:
        return opened.enter_context(open_repository(settings))

    return Site(
        vcenter=cache(vcenter),
        engine=cache(partial(open_engine, settings)),
        repository=cache(repository),
        agents=cache(partial(open_agents, settings)),
        authority=cache(partial(Authority.open, settings.agents.directory)),
        journal=cache(partial(Journal, settings.director.state_directory)),
        hold=HoldPolicy(
            lease_seconds=settings.director.lease_seconds,
            budget_seconds=settings.director.budget_seconds,
            accept_less=accept_less,
        ),
        work_directory=settings.director.state_directory / "work",
        close=opened.close,
    )


def create_storage(config: Path | None) -> tuple[str, Path]:
    """Make the directory of the settings' storage system a pool; its name and the directory."""
    system = _system(load_settings(config))
    create_pool(system.root, system.name)
    return system.name, system.root


def open_engine(settings: Settings) -> StorageEngine:
    """The site's storage system."""
    system = _system(settings)
    return EmbeddedEngine(
        system.name,
        system.root,
        portal_address=str(system.portal_address),
        reserve_bytes=system.reserve_bytes,
        durability=system.durability,
    )


def _system(settings: Settings) -> StorageSection:
    if len(settings.storage) != 1:
        raise ConfigurationError(
            f"{len(settings.storage)} storage systems are configured; this version works with one."
        )
    return settings.storage[0]


def open_vcenter(settings: Settings) -> VCenter:
    """A session with vCenter."""
    vcenter = settings.vcenter
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
    return Repository.open(settings.repository.location, KeyFile(settings.repository.key_file))


def create_repository(config: Path | None) -> Repository:
    """A new repository where the settings say, with a new key file unless there is one."""
    settings = load_settings(config)
    key = settings.repository.key_file
    source = KeyFile(key) if key.exists() else create_key_file(key)
    return Repository.create(settings.repository.location, source)


def open_agents(settings: Settings) -> Mapping[str, GuestAgent]:
    """A channel to each enrolled agent by instance UUID; nothing is connected yet."""
    agents = AgentRegistry(settings.agents.directory).agents()
    if not agents:
        return {}
    return open_channels(agents, Authority.open(settings.agents.directory).credentials)
