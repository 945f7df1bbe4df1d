"""Helpers for many calls at once: each serves one at a time, and some take minutes."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import atoll
from atoll.storage.sidecar.client import Sidecar

_PYTHON = "/usr/bin/python3"
"""The distribution's own: it is what its librbd and librados modules are built for."""

_KEPT = 2


class Sidecars:
    """Helpers over one pool, started as they are needed; a few are kept for the next calls."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self._name = name
        self._command = (_PYTHON, "-m", "atoll.storage.drivers.ceph.helper", *arguments)
        self._lock = threading.Lock()
        self._idle: list[Sidecar] = []

    @contextmanager
    def borrowed(self) -> Iterator[Sidecar]:
        """One for the caller alone."""
        sidecar = self.take()
        with self.giving_back(sidecar):
            yield sidecar

    def take(self) -> Sidecar:
        """One for the caller alone, until `giving_back`."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Sidecar(self._name, self._command, self._environment())

    @contextmanager
    def giving_back(self, sidecar: Sidecar) -> Iterator[None]:
        """Let others have it afterwards.

        Unless that fails: it may have been shut out by the cluster, or hold what
        the failed call had begun. Then it ends.
        """
        try:
            yield
        except BaseException:
            sidecar.close()
            raise
        self._keep(sidecar)

    def _keep(self, sidecar: Sidecar) -> None:
        with self._lock:
            keep = len(self._idle) < _KEPT
            if keep:
                self._idle.append(sidecar)
        if not keep:
            sidecar.close()

    @staticmethod
    def _environment() -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.fspath(Path(atoll.__file__).parents[1]),
            # Not modules of the directory that the caller happens to be in.
            "PYTHONSAFEPATH": "1",
        }
