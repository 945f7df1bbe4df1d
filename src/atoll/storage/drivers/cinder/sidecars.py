"""Starts the two sidecars: Cinder's driver, and librbd for reading."""

import json
import os
from pathlib import Path

from atoll.storage.drivers.cinder import start
from atoll.storage.drivers.cinder.settings import Settings
from atoll.storage.sidecar.client import Sidecar

_PACKAGE = "atoll.storage.drivers.cinder"
_KEPT = ("PATH", "HOME", "LANG")
"""Of our environment; nothing in it that is meant for our interpreter."""


def run_driver(
    name: str, settings: Settings, run: Path, directory: Path, log: Path | None = None
) -> Sidecar:
    """The sidecar of the array's driver, whose own messages go to `log`, in `run` by default.

    Its settings go by a file in `run`, which only we may read: options are nobody
    else's business. `directory` keeps what drivers want kept.
    """
    told = {
        "name": f"atoll-{name}",
        "volume_driver": settings.volume_driver,
        "reader_driver": settings.reader_driver,
        "options": settings.options,
        "secrets": {option: str(path) for option, path in settings.option_files.items()},
        "extra_specs": settings.extra_specs,
        "pool": settings.pool,
        "many_hosts": not settings.served_here,
        "directory": str(directory / "cinder"),
        "log": str(log or run / "cinder.log"),
        "lock": str(run / "cinder.lock"),
    }
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run / "cinder.json"
    fresh = path.with_name(f"cinder.json.{os.getpid()}")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(told))
    fresh.rename(path)
    return _sidecar(settings, settings.volume_driver, "helper", str(path))


def run_images(settings: Settings, conf: str, pool: str, user: str) -> Sidecar:
    """The sidecar that reads RBD images."""
    return _sidecar(settings, "librbd", "images", conf, pool, user)


def _sidecar(settings: Settings, name: str, module: str, *arguments: str) -> Sidecar:
    """`module` under Cinder's interpreter, which sees Atoll only as far as `start` shows it."""
    return Sidecar(
        name,
        # No modules of the user's, nor of whatever directory the caller is in.
        [str(settings.python), "-s", "-P", start.__file__, f"{_PACKAGE}.{module}", *arguments],
        {key: os.environ[key] for key in _KEPT if key in os.environ},
    )
