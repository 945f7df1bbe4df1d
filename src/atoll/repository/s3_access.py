"""Where a bucket is and who Atoll is there."""

import configparser
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from atoll.model.errors import ConfigurationError

SCHEME = "s3"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*)?")
_REGION = "us-east-1"

LockMode = Literal["compliance", "governance"]


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket and the prefix in it, without a slash at its ends, under which everything lies."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, location: str) -> Self:
        """`s3://BUCKET/PREFIX`; ConfigurationError if it is something else."""
        scheme, _, rest = location.partition("://")
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.rstrip("/")
        if scheme != SCHEME or not _BUCKET.fullmatch(bucket) or not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"{location} is no place for a repository; write s3://BUCKET/PREFIX, the prefix of "
                "letters, digits and `_.-/`."
            )
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"{SCHEME}://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """The key in the bucket of an object of the repository."""
        return f"{self.prefix}/{name}" if self.prefix else name


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key. `token` is empty for keys that do not expire."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach buckets. What is None is taken from the `AWS_*` environment, then AWS's defaults.

    `lock_days` locks what is written for so many days (S3 Object Lock), in `lock_mode`.
    """

    endpoint: str | None = None
    region: str | None = None
    credentials_file: Path | None = None
    ca_file: Path | None = None
    allow_http: bool = False
    lock_days: int | None = None
    lock_mode: LockMode = "compliance"

    def server(self) -> str | None:
        """The URL of the server, None for AWS; ConfigurationError where keys would be sent openly."""
        endpoint = (
            self.endpoint
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
        )
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
            raise ConfigurationError(
                "The S3 endpoint is no URL of a server; write https://HOST or https://HOST:PORT."
            )
        if parts.scheme == "http" and not self.allow_http and not _is_loopback(parts.hostname):
            raise ConfigurationError(
                f"The S3 endpoint {endpoint} is not encrypted; use https://, or set "
                "`allow_http = true` if the network in between is trusted."
            )
        return endpoint.rstrip("/")

    def where(self) -> str:
        """The region whose name goes into signatures; most servers but AWS take any."""
        environment = os.environ
        return (
            self.region
            or environment.get("AWS_REGION")
            or environment.get("AWS_DEFAULT_REGION")
            or _REGION
        )

    def credentials(self) -> Credentials:
        """The keys; ConfigurationError, which does not quote them, if there are none."""
        if self.credentials_file is not None:
            return _from_file(self.credentials_file)
        environment = os.environ
        try:
            return Credentials(
                environment["AWS_ACCESS_KEY_ID"],
                environment["AWS_SECRET_ACCESS_KEY"],
                environment.get("AWS_SESSION_TOKEN", ""),
            )
        except KeyError as error:
            raise ConfigurationError(
                "There are no keys for S3: name a `credentials_file` in [repository], or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from error

    def authority(self) -> bytes | None:
        """The PEM of certificates to trust besides the system's."""
        if self.ca_file is None:
            return None
        try:
            return self.ca_file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"Cannot read {self.ca_file}: {error.strerror}.") from error


def _from_file(path: Path) -> Credentials:
    """AWS's own format: https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html"""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
        section = parser["default"]
        return Credentials(
            section["aws_access_key_id"],
            section["aws_secret_access_key"],
            section.get("aws_session_token", ""),
        )
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}.") from error
    except (configparser.Error, KeyError, UnicodeDecodeError):
        # The parser's own words would quote the line, and with it perhaps the key.
        raise ConfigurationError(
            f"{path} is no credentials file: under [default] it must hold aws_access_key_id and "
            "aws_secret_access_key."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
