"""Where vCenter is, who Atoll is there, and how its certificate is checked."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from atoll.model.errors import ConfigurationError

_THUMBPRINT = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class VCenterSettings:
    """Connection settings; raises ConfigurationError when they contradict each other.

    The certificate is verified against the system's authorities unless
    `ca_file` (PEM) names others, `thumbprint` pins one certificate (SHA-256,
    hex, colons allowed), or `insecure` gives up verification. `connect_seconds`
    is how long vCenter may take to accept, `answer_seconds` how long one call
    may take (a rescan of a host with many LUNs takes minutes). `page_objects`
    is how many objects one reply of the property collector may hold.
    """

    host: str
    user: str
    password: str = field(repr=False)
    port: int = 443
    ca_file: Path | None = None
    thumbprint: str | None = None
    insecure: bool = False
    connect_seconds: float = 10.0
    answer_seconds: float = 300.0
    page_objects: int = 500

    def __post_init__(self) -> None:
        ways = [self.ca_file is not None, self.thumbprint is not None, self.insecure]
        if sum(ways) > 1:
            raise ConfigurationError(
                f"vCenter {self.host}: ca_file, thumbprint and insecure exclude each other; keep one."
            )
        if self.thumbprint is not None and not _THUMBPRINT.match(self.pinned):
            raise ConfigurationError(
                f"vCenter {self.host}: the thumbprint must be a SHA-256 of 64 hex digits; "
                "read it with `openssl x509 -noout -fingerprint -sha256`."
            )

    @property
    def pinned(self) -> str:
        """The thumbprint in lower case without colons, empty when there is none."""
        return (self.thumbprint or "").replace(":", "").lower()

    @property
    def address(self) -> str:
        """`host:port` for messages."""
        return f"{self.host}:{self.port}"
