"""Every storage engine the suite runs over: a new one adds a line to ENGINES.

An engine's line stands its system up, empty, yields the driver's part of a `[[storage]]` section,
and takes the system down.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from atoll.model.storage import Portal
from atoll.settings import StorageSection
from atoll.storage.backend import Chap
from atoll.storage.engine import ManagedEngine
from atoll.wiring import create_system, open_system
from atoll_lab.ceph import mini_cluster
from atoll_lab.iscsi import IscsiLun
from atoll_lab.pool import create_loop_pool, destroy
from atoll_lab.san.guest import san_guest
from cinder_flash_array import cinder_flash_array
from ontap_array import ontap_array
from pure_array import pure_array

ESX1 = "iqn.1998-01.com.vmware:esx1"
ESX2 = "iqn.1998-01.com.vmware:esx2"
ESX3 = "iqn.1998-01.com.vmware:esx3"
"""The one that has a CHAP account."""
# libiscsi 1.19 reads the padding of a login answer as text, and LIO pads with what was there before:
# a mutual user of 6 letters needs no padding.
CHAP = Chap("esx3", "three-secret-3", "target", "answer-of-suite")

MIB = 1 << 20


@dataclass
class Storage:
    """A storage system under test; engines are opened anew as after a restart of the caller."""

    section: StorageSection
    engine: ManagedEngine
    names: Iterator[int] = field(default_factory=count)

    @property
    def size(self) -> int:
        """A small size that the engine's LUNs can have, at least 16 MiB."""
        unit = self.engine.capabilities.unit_bytes
        return -(-16 * MIB // unit) * unit

    def reopen(self, **rules: Any) -> ManagedEngine:
        """The same with other rules, which are keys of the settings."""
        return open_system(self.section.model_copy(update=rules))

    def fresh(self) -> str:
        """A group name not used before."""
        return f"group-{next(self.names)}"

    def open(self, portal: Portal, initiator: str = ESX1, chap: Chap | None = None) -> IscsiLun:
        """The LUN behind a portal, as an initiator."""
        return IscsiLun(
            f"{portal.address}:{portal.port}",
            portal.target,
            portal.lun_number,
            initiator,
            chap=chap,
        )


@contextmanager
def embedded(directory: Path) -> Iterator[dict[str, Any]]:
    root = create_loop_pool(directory, 4 << 30)
    try:
        yield {
            "driver": "embedded",
            "root": str(root),
            "portal_addresses": ["127.0.0.1", "127.0.0.2"],
        }
    finally:
        destroy(directory)


@contextmanager
def san(directory: Path) -> Iterator[dict[str, Any]]:
    with san_guest(directory) as guest:
        yield {**guest.settings, "state_directory": str(directory / "state")}


@contextmanager
def cinder_rbd(directory: Path) -> Iterator[dict[str, Any]]:
    with mini_cluster(directory) as cluster:
        yield {
            "driver": "cinder",
            "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
            "options": {
                "rbd_ceph_conf": str(cluster.conf),
                "rbd_pool": cluster.pool,
                "rbd_user": cluster.user,
            },
            "state_directory": str(directory / "state"),
            "portal_addresses": ["127.0.0.1", "127.0.0.2"],
        }


@contextmanager
def ceph(directory: Path) -> Iterator[dict[str, Any]]:
    with mini_cluster(directory) as cluster:
        yield {
            "driver": "ceph",
            "conf": str(cluster.conf),
            "pool": cluster.pool,
            "user": cluster.user,
            "keyring": str(cluster.keyring),
            "state_directory": str(directory / "state"),
            "portal_addresses": ["127.0.0.1", "127.0.0.2"],
        }


@contextmanager
def pure(directory: Path) -> Iterator[dict[str, Any]]:
    root = create_loop_pool(directory, 4 << 30)
    try:
        with pure_array(root / "array") as array:
            yield {**array.settings(directory), "state_directory": str(directory / "state")}
    finally:
        destroy(directory)


@contextmanager
def ontap(directory: Path) -> Iterator[dict[str, Any]]:
    root = create_loop_pool(directory, 4 << 30)
    try:
        with ontap_array(root / "array") as array:
            yield {**array.settings(directory), "state_directory": str(directory / "state")}
    finally:
        destroy(directory)


@contextmanager
def cinder_flasharray(directory: Path) -> Iterator[dict[str, Any]]:
    media = create_loop_pool(directory, 4 << 30)
    try:
        with cinder_flash_array(media) as array:
            yield {**array.settings(directory), "state_directory": str(directory / "state")}
    finally:
        destroy(directory)


ENGINES: Mapping[str, Callable[[Path], AbstractContextManager[dict[str, Any]]]] = {
    "cinder-flasharray": cinder_flasharray,
    "ceph": ceph,
    "cinder-rbd": cinder_rbd,
    "embedded": embedded,
    "ontap": ontap,
    "pure": pure,
    "san": san,
}


@contextmanager
def standing(engine: str, directory: Path) -> Iterator[Storage]:
    """The system of an engine, prepared; nothing of it runs afterwards."""
    secrets = {}
    for user, secret in ((CHAP.user, CHAP.secret), (CHAP.mutual_user, CHAP.mutual_secret)):
        secrets[user] = directory / f"{user}.secret"
        secrets[user].write_text(f"{secret}\n")
    with ENGINES[engine](directory / "system") as keys:
        section = StorageSection.model_validate(
            {
                "name": "suite",
                "reserve_bytes": MIB,
                "chap": [{"initiator": ESX3, "user": CHAP.user, "secret_file": secrets[CHAP.user]}],
                "mutual_chap": {
                    "user": CHAP.mutual_user,
                    "secret_file": secrets[CHAP.mutual_user],
                },
                **keys,
            }
        )
        create_system(section)
        opened = open_system(section)
        try:
            yield Storage(section, opened)
        finally:
            opened.stop()
            shutil.rmtree(opened.runtime_directory, ignore_errors=True)
