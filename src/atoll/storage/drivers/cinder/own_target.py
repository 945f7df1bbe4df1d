"""RBD images, which hosts cannot reach by themselves: a tgtd of this machine serves them over iSCSI."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from uuid import UUID

from atoll.model.errors import ConfigurationError, StorageUnreachableError
from atoll.model.readers import BlockReader
from atoll.model.storage import Portal
from atoll.storage.backend import Export, Place, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.cinder.remembered import Volume, snapshot_of
from atoll.storage.drivers.cinder.settings import Settings
from atoll.storage.drivers.cinder.sidecars import run_images
from atoll.storage.identity import identity_of
from atoll.storage.sidecar.reader import SidecarReader
from atoll.storage.targets.tgt import BackingStore, TgtTargets
from atoll.storage.targets.tgt.answers import while_answers_held
from atoll.storage.targets.tgt.rbd import rbd_image

_LIMIT_SECONDS = 5.0
"""After this long initiators matter more than the snapshot."""


class OwnTarget:
    """A DataPath over TgtTargets, with librbd in a sidecar to read."""

    def __init__(self, settings: Settings, place: Place) -> None:
        options = settings.options
        self._conf = Path(str(options.get("rbd_ceph_conf", "/etc/ceph/ceph.conf")))
        self._pool = str(options.get("rbd_pool", "rbd"))
        self._user = str(options.get("rbd_user", "admin"))
        self._run = place.run
        self._images = run_images(settings, str(self._conf), self._pool, self._user)
        first, last = settings.portal_ports
        self._targets = TgtTargets(
            place,
            [str(address) for address in settings.portal_addresses],
            range(first, last + 1),
            self._backing,
        )

    def identify(self, volume: Volume) -> VolumeIdentity:
        """What our target is told to say."""
        return identity_of(volume.id)

    def measure(self, volume: Volume) -> int:
        """As the pool has it; what is not there has none."""
        return self.sizes({volume.id: volume}).get(volume.id, 0)

    def sizes(self, volumes: Mapping[str, Volume]) -> Mapping[str, int]:
        """As the pool has them."""
        names = {_image(volume): volume for volume in volumes}
        found = self._images.call("sizes", volumes=list(names)) if names else {}
        return {names[name]: size for name, size in found.items()}

    def let_go(self, volume: Volume) -> None:
        """Nothing to do: what is deleted is not served any more."""

    def forget_group(self, group: str) -> None:
        """Free its port."""
        self._targets.forget(group)

    def while_held(self, group: str, action: Callable[[], None]) -> SnapshotTimes:
        """The group's tgtd answers nothing meanwhile."""
        with self._targets.process(group) or nullcontext() as process:
            if process is None and group in self._targets.served():
                raise StorageUnreachableError(
                    "The iSCSI daemon of the LUN group is not found, so its writes cannot be held "
                    "back and no snapshot was taken; `atoll cleanup` starts it again."
                )
            return while_answers_held(process, action, limit_seconds=_LIMIT_SECONDS)

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """By librbd, in the sidecar."""
        image, taken = _image(volume), f"snapshot-{UUID(snapshot_of(snapshot, volume))}"
        size_bytes = self._images.call("open_snapshot", volume=image, snapshot=taken)
        return SidecarReader(self._images, image, taken, size_bytes)

    def clear(self) -> None:
        """Readers leave nothing behind."""

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """Over iSCSI, from the group's tgtd."""
        return self._targets.serve(group, exports)

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """One for each of the machine's addresses."""
        return self._targets.portals(group, export)

    def served(self) -> Sequence[str]:
        """Groups with a tgtd."""
        return self._targets.served()

    def release(self, group: str) -> bool:
        """Let a tgtd run that was stopped."""
        return self._targets.release(group)

    def stop(self, group: str) -> bool:
        """End the group's tgtd."""
        return self._targets.stop(group)

    def _backing(self, group: str, export: Export) -> BackingStore:
        return rbd_image(self._pool, _image(export.volume), self._target_conf(), self._user)

    def _target_conf(self) -> Path:
        """The cluster's settings for tgtd, with librbd's cache off.

        What tgtd acknowledges must be on the cluster's disks: it may be killed, and
        snapshots must have it.
        """
        try:
            text = self._conf.read_text()
        except OSError as error:
            raise ConfigurationError(
                f"Cannot read {self._conf}: {error.strerror}; correct the option rbd_ceph_conf."
            ) from error
        text += f"\n[client]\nrbd cache = false\n[client.{self._user}]\nrbd cache = false\n"
        conf = self._run / "ceph.conf"
        if not conf.exists() or conf.read_text() != text:
            fresh = conf.with_name(f"ceph.conf.{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_text(text)
            fresh.rename(conf)
        return conf


def _image(volume: str) -> str:
    """What Cinder calls a volume's image."""
    return f"volume-{UUID(volume)}"
