"""Names and numbers by which initiators know a LUN that a target of ours serves."""

import re

from atoll.model.errors import StorageConflictError
from atoll.storage.backend import VolumeIdentity

VENDOR, PRODUCT = "ATOLL", "LUN"

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_INITIATOR = re.compile(r"(iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,219}")
_IQN_PREFIX = "iqn.2026-11.org.atoll"
_NAA_PREFIX = "naa.6001405"


def identity_of(volume: str) -> VolumeIdentity:
    """The identity of a volume by its id, so that a restart or a new portal changes none of it.

    `naa` is an NAA-6 name (SPC-4, 7.8.6.6.5) under the prefix Linux targets use.
    """
    return VolumeIdentity(_NAA_PREFIX + volume[:25], volume, VENDOR, PRODUCT)


def target_id(volume: str) -> int:
    """A number of 31 bits for targets that need one.

    tgt shows it in a second designator of the LUN, so two LUNs must never share one.
    """
    return int(volume[-8:], 16) & 0x7FFFFFFF or 1


def target_name(system: str, group: str, lun: str) -> str:
    """A LUN's iSCSI target. Colons part the names because names may hold dots."""
    return f"{_IQN_PREFIX}:{system}:{group}:{lun}"


def check_name(kind: str, name: str) -> str:
    """The name itself; StorageConflictError when it cannot be kept."""
    if not _NAME.fullmatch(name):
        raise StorageConflictError(
            f"{name!r} cannot name a {kind}: use 1 to 63 of a-z, 0-9, dot and hyphen, "
            "beginning with a letter or digit."
        )
    return name


def check_initiator(name: str) -> str:
    """The name itself; StorageConflictError when it is no initiator's, iSCSI or Fibre Channel.

    A Fibre Channel port is written `naa.` and its WWPN in 16 hex digits.
    """
    if not _INITIATOR.fullmatch(name):
        raise StorageConflictError(
            f"{name!r} is no initiator name; give an IQN such as iqn.1998-01.com.vmware:esx1, or "
            "naa. and the WWPN for Fibre Channel."
        )
    return name
