"""Names and numbers by which initiators know a LUN."""

import re
from dataclasses import dataclass
from uuid import UUID

from atoll.model.errors import StorageConflictError

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_INITIATOR = re.compile(r"(iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,219}")
_IQN_PREFIX = "iqn.2026-11.org.atoll"
_NAA_PREFIX = "naa.6001405"


@dataclass(frozen=True, slots=True)
class Identity:
    """All derived from the LUN's UUID, so that a restart or a new portal changes none of it.

    `naa` is an NAA-6 name (SPC-4, 7.8.6.6.5) under the prefix Linux targets use.
    `target_id` is tgt's, 31 bits: it shows up in a second designator of the LUN,
    so two LUNs must never share one.
    """

    naa: str
    serial: str
    target_id: int


def identity_of(uuid: UUID) -> Identity:
    """The identity of the LUN with this UUID."""
    return Identity(
        naa=_NAA_PREFIX + uuid.hex[:25],
        serial=uuid.hex,
        target_id=int(uuid.hex[-8:], 16) & 0x7FFFFFFF or 1,
    )


def target_name(pool: str, group: str, lun: str) -> str:
    """The LUN's iSCSI target. Colons part the names because names may hold dots."""
    return f"{_IQN_PREFIX}:{pool}:{group}:{lun}"


def check_name(kind: str, name: str) -> str:
    """The name itself; StorageConflictError when the engine could not keep it."""
    if not _NAME.fullmatch(name):
        raise StorageConflictError(
            f"{name!r} cannot name a {kind}: use 1 to 63 of a-z, 0-9, dot and hyphen, "
            "beginning with a letter or digit."
        )
    return name


def check_initiator(name: str) -> str:
    """The name itself; StorageConflictError when it is no iSCSI initiator name."""
    if not _INITIATOR.fullmatch(name):
        raise StorageConflictError(
            f"{name!r} is no iSCSI initiator name; give an IQN such as iqn.1998-01.com.vmware:esx1."
        )
    return name
