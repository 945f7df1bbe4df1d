"""What one of Cinder's drivers says of itself and its array."""

from dataclasses import dataclass
from typing import Literal

HostProtocol = Literal["iscsi", "fc"]

_PROTOCOLS: dict[str, HostProtocol] = {"iscsi": "iscsi", "fc": "fc", "fibre_channel": "fc"}


@dataclass(frozen=True, slots=True)
class Facts:
    """`protocol` is in Cinder's words; `group_snapshots` are such as are one instant."""

    vendor: str
    protocol: str
    group_snapshots: bool
    revert: bool

    @property
    def protocols(self) -> frozenset[HostProtocol]:
        """The protocol in Atoll's words, if they have one for it."""
        found = _PROTOCOLS.get(self.protocol.lower())
        return frozenset({found} if found else ())
