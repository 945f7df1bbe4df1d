"""Buckets of a real gateway, and stores and repositories in them."""

import re
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from atoll.repository.s3 import S3Store
from atoll.repository.s3_access import S3Access, S3Location
from atoll.repository.s3_faults import Patience
from atoll.repository.s3_presence import Rhythm
from atoll_lab.rgw import Gateway
from nbd_trust import make_certificates
from s3_proxy import S3Proxy

AT_ONCE = Patience(attempts=4, sleep=lambda _: None)
"""Tries again without waiting."""
STILL = Rhythm(interval_seconds=3600.0)
"""Nothing is written by itself while a test runs."""


@dataclass
class S3Site:
    """A gateway with buckets of the test session."""

    gateway: Gateway
    directory: Path
    _numbers: Iterator[int] = field(default_factory=count)
    _mark: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        self._keys = self.directory / "credentials"
        self._keys.touch(mode=0o600)
        self._keys.write_text(
            f"[default]\naws_access_key_id = {self.gateway.access_key}\n"
            f"aws_secret_access_key = {self.gateway.secret_key}\n"
        )
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.gateway.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.gateway.access_key,
            aws_secret_access_key=self.gateway.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )
        self.plain = self.bucket()

    def bucket(self, *, locks: bool = False, versions: bool = False) -> str:
        """A new bucket's name."""
        name = f"atoll-{self._mark}-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locks)
        if versions:
            self.client.put_bucket_versioning(
                Bucket=name, VersioningConfiguration={"Status": "Enabled"}
            )
        return name

    def location(self, bucket: str | None = None) -> S3Location:
        """A prefix that nobody has used."""
        return S3Location(bucket or self.plain, f"site-{next(self._numbers)}/atoll")

    def access(self, endpoint: str | None = None, **more: Any) -> S3Access:
        """The keys of the gateway, at a proxy's endpoint if one is given."""
        made = S3Access(endpoint=endpoint or self.gateway.endpoint, credentials_file=self._keys)
        return replace(made, **more)

    def store(
        self,
        location: S3Location | None = None,
        endpoint: str | None = None,
        patience: Patience = AT_ONCE,
        rhythm: Rhythm = STILL,
        **access: Any,
    ) -> S3Store:
        """A store; at a place of its own unless one is given."""
        return S3Store.open(
            location or self.location(),
            self.access(endpoint, **access),
            patience=patience,
            rhythm=rhythm,
        )

    @contextmanager
    def proxy(self) -> Iterator[S3Proxy]:
        """Something in between that can fail."""
        with S3Proxy(self.gateway.port) as made:
            yield made

    @contextmanager
    def tls_proxy(self) -> Iterator[tuple[S3Proxy, Path]]:
        """The same over TLS, and the authority of its certificate."""
        where = self.directory / f"tls-{next(self._numbers)}"
        make_certificates(where)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(where / "server-cert.pem", where / "server-key.pem")
        with S3Proxy(self.gateway.port, context) as made:
            yield made, where / "ca-cert.pem"


_MODIFIED = re.compile(rb"<LastModified>([^<]+)</LastModified>")
_HOUR = timedelta(hours=1)


def an_hour_later(listing: bytes) -> bytes:
    """A listing in which all but the newest object are older by an hour."""
    newest = max(_MODIFIED.findall(listing), default=b"")

    def aged(found: re.Match[bytes]) -> bytes:
        if found[1] == newest:
            return found[0]
        at = datetime.fromisoformat(found[1].decode()) - _HOUR
        return f"<LastModified>{at:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>".encode()

    return _MODIFIED.sub(aged, listing)
