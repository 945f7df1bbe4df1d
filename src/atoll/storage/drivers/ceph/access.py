"""The way to a pool, for the helpers and for tgtd."""

import os
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.storage.drivers.ceph.names import image_name
from atoll.storage.drivers.ceph.sidecars import Sidecars
from atoll.storage.targets.tgt import BackingStore
from atoll.storage.targets.tgt.rbd import rbd_image


@dataclass(frozen=True, slots=True)
class Access:
    """Ceph's settings, a pool, and who asks for it, with a key from `keyring` or Ceph's settings.

    `system` is the id of the storage system in the pool; `run` is a directory for
    what is gone after a restart.
    """

    name: str
    conf: Path
    pool: str
    user: str
    keyring: Path | None
    system: str
    run: Path

    def sidecars(self) -> Sidecars:
        """Helpers over the pool."""
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        keyring = "" if self.keyring is None else os.fspath(self.keyring)
        return Sidecars(
            self.name,
            [
                os.fspath(self.conf),
                self.pool,
                self.user,
                keyring,
                self.system,
                os.fspath(self.run),
            ],
        )

    def backing_store(self, volume: str) -> BackingStore:
        """A volume's image, as tgtd opens it."""
        return rbd_image(self.pool, image_name(self.system, volume), self._conf(), self.user)

    def _conf(self) -> Path:
        """Settings that name the keyring, for tgtd can be told of no other file."""
        if self.keyring is None:
            return self.conf
        path = self.run / "ceph.conf"
        try:
            wanted = f"{self.conf.read_text()}\n[client.{self.user}]\nkeyring = {self.keyring}\n"
            if not path.exists() or path.read_text() != wanted:
                fresh = path.with_suffix(".new")
                fresh.write_text(wanted)
                fresh.rename(path)
        except OSError as error:
            raise StorageUnreachableError(
                f"Cannot copy {self.conf} to {path} for the iSCSI daemon: {error.strerror}; check "
                "both directories."
            ) from error
        return path
