"""Starts one of Cinder's drivers without Cinder: settings from Atoll, no services, no database."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cinder.privsep
import os_brick.privileged
from cinder import coordination
from cinder.volume import configuration, manager
from oslo_config import cfg
from oslo_utils import importutils, strutils

from atoll.model.errors import ConfigurationError, StorageUnreachableError
from atoll.storage.drivers.cinder.helper.nouns import ADMIN, Nouns
from atoll.storage.drivers.cinder.helper.shelf import Shelf

_LOG = logging.getLogger(__name__)
_HOST = "atoll"
_SHARED = configuration.SHARED_CONF_GROUP
_UNMARKED_SECRETS = frozenset({"kioxia_token", "pure_api_token"})
"""Options that their drivers do not mark as what they are."""


@dataclass(frozen=True, slots=True)
class Told:
    """What Atoll said in the file this sidecar was started with.

    `secrets` are options whose values are in files. `reader_driver` reaches the
    same array over iSCSI, when `volume_driver` does not. `many_hosts` when the
    array itself lets several hosts reach a volume, and no target of ours.
    """

    name: str
    volume_driver: str
    reader_driver: str | None
    options: Mapping[str, Any]
    secrets: Mapping[str, Path]
    extra_specs: Mapping[str, str]
    pool: str | None
    many_hosts: bool
    directory: Path
    log: Path


@dataclass(frozen=True, slots=True)
class Running:
    """A driver that answers; `reader` is the one that attaches volumes to this machine."""

    driver: Any
    reader: Any
    nouns: Nouns
    shelf: Shelf
    stats: Mapping[str, Any]


def start(told: Told) -> Running:
    """Set Cinder up and its driver to work.

    ConfigurationError when the settings are wrong, StorageUnreachableError when
    the driver does not come up.
    """
    prepare(told.directory, told.log)
    kinds = [_driver_class(told.volume_driver)]
    if told.reader_driver:
        kinds.append(_driver_class(told.reader_driver))
    for kind in kinds:
        register(kind)
    cfg.CONF.set_override("volume_backend_name", told.name, group=_SHARED)
    for option, value in told.options.items():
        _set(told, option, value, _option(told, option))
    for option, path in told.secrets.items():
        _set(told, option, _secret(path), _option(told, option))
    shelf = Shelf(None, told.directory / "initiators.json")
    shelf.stand_in()
    drivers = [_set_up(kind, told) for kind in kinds]
    stats = pool_stats(drivers[0], told.pool)
    host = f"{_HOST}@{told.name}#{stats['pool_name']}"
    many = told.many_hosts and bool(stats.get("multiattach"))
    nouns = Nouns(host, told.extra_specs, multiattach=many)
    shelf.type = nouns.type
    return Running(drivers[0], drivers[-1], nouns, shelf, stats)


def pool_stats(driver: Any, pool: str | None, *, refresh: bool = False) -> dict[str, Any]:
    """What a driver says of itself and one of its pools, the first unless named, as one table."""
    stats = dict(driver.get_volume_stats(refresh=True) if refresh else driver.capabilities)
    pools = stats.pop("pools", None) or [{"pool_name": driver.configuration.volume_backend_name}]
    names = [each["pool_name"] for each in pools]
    for each in pools:
        if pool is None or each["pool_name"] == pool:
            return {**stats, **each}
    raise ConfigurationError(
        f"The array has no pool {pool}; set pool to one of {', '.join(sorted(names))}."
    )


def said(error: BaseException) -> str:
    """An error of Cinder's in its own words, without passwords and line breaks."""
    text = " ".join(str(strutils.mask_password(str(error))).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def prepare(directory: Path, log: Path) -> None:
    """Set Cinder up without a file of settings; `directory` is for what drivers keep."""
    logging.basicConfig(
        filename=log,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    locks = directory / "locks"
    locks.mkdir(mode=0o700, exist_ok=True)
    version = manager.VolumeManager.RPC_API_VERSION  # the manager's module registers options, too
    cfg.CONF([], project="cinder", version=version, default_config_files=[])
    cfg.CONF.set_override("state_path", str(directory))
    cfg.CONF.set_override("host", _HOST)
    cfg.CONF.set_override("lock_path", str(locks), group="oslo_concurrency")
    cfg.CONF.set_override("backend_url", f"file://{locks}", group="coordination")
    # As root there is nobody to ask for more rights.
    rights = os.geteuid() != 0
    cinder.privsep.sys_admin_pctxt.set_client_mode(rights)
    os_brick.privileged.default.set_client_mode(rights)
    coordination.COORDINATOR.start()


def _driver_class(path: str) -> Any:
    try:
        return importutils.import_class(path)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"Cinder has no driver {path} ({said(error)}); docs/drivers/cinder-drivers.md lists them."
        ) from error


def register(kind: Any) -> None:
    """Make a driver's options known where all drivers find theirs."""
    for option in kind.get_driver_options() or ():
        try:
            cfg.CONF.register_opt(option, group=_SHARED)
        except cfg.DuplicateOptError:
            continue  # its module did that


def _option(told: Told, name: str) -> cfg.Opt:
    group = getattr(cfg.CONF, _SHARED)
    if name not in group:
        raise ConfigurationError(
            f"The driver {told.volume_driver} has no option {name}; see its page in Cinder's "
            "documentation."
        )
    return group._group._opts[name]["opt"]


def _set(told: Told, name: str, value: Any, option: cfg.Opt) -> None:
    if (option.secret or name in _UNMARKED_SECRETS) and name not in told.secrets:
        raise ConfigurationError(
            f"The option {name} is a secret; put it into a file and name that under option_files."
        )
    try:
        cfg.CONF.set_override(name, value, group=_SHARED)
    except ValueError as error:
        shown = "what its file holds" if name in told.secrets else repr(value)
        raise ConfigurationError(
            f"The option {name} cannot be {shown}: it takes {option.type}."
        ) from error


def _secret(path: Path) -> str:
    try:
        return path.read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read {path}: {said(error)}.") from error


def _set_up(kind: Any, told: Told) -> Any:
    try:
        group = cfg.OptGroup(told.name)
        cfg.CONF.register_group(group)
        settings = configuration.Configuration([], config_group=told.name)
        driver = kind(
            configuration=settings, host=f"{_HOST}@{told.name}", cluster_name=None,
            active_backend_id=None,
        )  # fmt: skip
        driver.do_setup(ADMIN)
        driver.check_for_setup_error()
        driver.init_capabilities()
        driver.set_throttle()
        driver.set_initialized()
    except Exception as error:
        _LOG.warning("The driver did not start", exc_info=True)
        raise StorageUnreachableError(
            f"Cinder's driver {told.volume_driver} did not start ({said(error)}); check the array and "
            f"the driver's options, and see {told.log}."
        ) from error
    return driver
