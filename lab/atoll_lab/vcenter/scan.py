"""A host's rescan: discovery, login and a look at every LUN, with the host's own name."""

import logging
from collections.abc import Sequence

from atoll.model.errors import StorageUnreachableError
from atoll_lab.vcenter.fabric import Fabric
from atoll_lab.vcenter.state import LunState, VolumeState
from atoll_lab.vcenter.vmfs_header import read_volume

_log = logging.getLogger(__name__)


def visible_luns(fabric: Fabric, portals: Sequence[str], initiator: str) -> list[LunState]:
    """Every LUN the initiator reaches through the portals, one entry a LUN.

    A portal or LUN that does not answer is logged and left out, as an ESX
    host's rescan does: the call itself still succeeds.
    """
    found: dict[str, LunState] = {}
    for portal in portals:
        try:
            targets = fabric.targets(portal, initiator)
        except StorageUnreachableError as error:
            _log.warning("discovery at %s as %s: %s", portal, initiator, error)
            continue
        for target in targets:
            for lun in _luns_of(fabric, portal, target, initiator):
                found.setdefault(lun.naa, lun)
    return sorted(found.values(), key=lambda lun: lun.naa)


def volume_on(fabric: Fabric, lun: LunState, initiator: str) -> VolumeState | None:
    """The VMFS extent on a visible LUN, None when there is none or the LUN does not answer."""
    try:
        handle = fabric.open(lun.portal, lun.target, lun.number, initiator)
    except StorageUnreachableError as error:
        _log.warning("login to %s as %s: %s", lun.naa, initiator, error)
        return None
    try:
        return read_volume(handle.read)
    except StorageUnreachableError as error:
        _log.warning("reading %s as %s: %s", lun.naa, initiator, error)
        return None
    finally:
        handle.close()


def _luns_of(fabric: Fabric, portal: str, target: str, initiator: str) -> list[LunState]:
    try:
        numbers = fabric.luns(portal, target, initiator)
    except StorageUnreachableError as error:
        _log.warning("login to %s at %s as %s: %s", target, portal, initiator, error)
        return []
    luns = []
    for number in numbers:
        try:
            handle = fabric.open(portal, target, number, initiator)
        except StorageUnreachableError as error:
            _log.warning("LUN %d of %s as %s: %s", number, target, initiator, error)
            continue
        identity, size_bytes = handle.identity, handle.size_bytes
        handle.close()
        luns.append(
            LunState(
                naa=identity.naa,
                serial=identity.serial,
                vendor=identity.vendor,
                product=identity.product,
                size_bytes=size_bytes,
                portal=portal,
                target=target,
                number=number,
            )
        )
    return luns
