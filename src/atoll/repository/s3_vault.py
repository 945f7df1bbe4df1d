"""S3 Object Lock: objects that nobody can remove before a time, and the versions that come with it.

By boto3, because obstore sends no header of the lock and asks for no version.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from atoll.model.errors import ConfigurationError
from atoll.repository.s3_access import S3Access, S3Location
from atoll.repository.s3_faults import LockedVersion, S3Fault
from atoll.repository.s3_objects import Version

T = TypeVar("T")

_REQUEST_SECONDS = 300
_CONNECT_SECONDS = 20
_AT_ONCE = 8


class Vault:
    """Objects with locks. Methods raise S3Fault and repeat nothing, unless they say otherwise."""

    def __init__(self, location: S3Location, access: S3Access, days: int) -> None:
        self._location = location
        self._days = days
        self._mode = access.lock_mode.upper()
        credentials = access.credentials()
        self._client = boto3.client(
            "s3",
            endpoint_url=access.server(),
            region_name=access.where(),
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.token or None,
            verify=str(access.ca_file) if access.ca_file else None,
            config=Config(
                s3={"addressing_style": "path"},
                signature_version="s3v4",
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_REQUEST_SECONDS,
                max_pool_connections=_AT_ONCE + 4,
                retries={"total_max_attempts": 1, "mode": "standard"},
                # Older servers know no trailing checksums; Content-MD5, which locks need, is enough.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def check_bucket(self) -> None:
        """ConfigurationError if the bucket cannot lock, or locks everything by itself."""
        bucket = self._location.bucket
        try:
            found = _asked(lambda: self._client.get_object_lock_configuration(Bucket=bucket))
        except S3Fault as fault:
            if fault.code not in {"ObjectLockConfigurationNotFoundError", "InvalidRequest"}:
                raise
            found = {}
        lock = found.get("ObjectLockConfiguration", {})
        if lock.get("ObjectLockEnabled") != "Enabled":
            raise ConfigurationError(
                f"The bucket {bucket} has no Object Lock, so nothing was written; make a bucket with "
                "Object Lock, or leave out `lock_days`."
            )
        if lock.get("Rule"):
            raise ConfigurationError(
                f"The bucket {bucket} locks every object by default, which would keep what Atoll "
                "writes each minute; remove the bucket's default retention."
            )

    def put(self, name: str, data: bytes, *, only_new: bool) -> None:
        """Put an object that is locked from now on; `only_new` asks the server to see that it is new."""
        condition = {"IfNoneMatch": "*"} if only_new else {}
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        _asked(
            lambda: self._client.put_object(
                Bucket=self._location.bucket,
                Key=self._location.key(name),
                Body=data,
                ContentMD5=base64.b64encode(digest).decode(),
                ObjectLockMode=self._mode,
                ObjectLockRetainUntilDate=self.ends(),
                **condition,
            )
        )

    def locked_until(self, name: str, version: str | None = None) -> datetime | None:
        """Until when a version, or the latest, is locked; None if it is not, S3Fault if it is absent."""
        which = {"VersionId": version} if version else {}
        found = _asked(
            lambda: self._client.head_object(
                Bucket=self._location.bucket, Key=self._location.key(name), **which
            )
        )
        until: datetime | None = found.get("ObjectLockRetainUntilDate")
        return until if until is not None and until > datetime.now(UTC) else None

    def ends(self, share: float = 1.0) -> datetime:
        """The end of a lock that begins now, or of a share of its time."""
        return datetime.now(UTC) + timedelta(days=self._days) * share

    def extend(
        self, names: Iterable[str], until: datetime, soon: datetime, again: Callable[..., Any]
    ) -> int:
        """Lock objects until then whose lock ends before `soon`; how many. `again` repeats requests."""

        def extended(name: str) -> bool:
            ends: datetime | None = again(lambda: self.locked_until(name))
            if ends is not None and ends >= soon:
                return False
            again(lambda: self._retain(name, until))
            return True

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="atoll-lock") as workers:
            return sum(workers.map(extended, names))

    def _retain(self, name: str, until: datetime) -> None:
        _asked(
            lambda: self._client.put_object_retention(
                Bucket=self._location.bucket,
                Key=self._location.key(name),
                Retention={"Mode": self._mode, "RetainUntilDate": until},
            )
        )

    def versions(self, prefix: str) -> Iterator[Version]:
        """All versions and markers of the objects whose names start like this."""
        more: dict[str, str] = {}
        cut = len(self._location.key(""))
        while True:
            page = _asked(
                partial(
                    self._client.list_object_versions,
                    Bucket=self._location.bucket,
                    Prefix=self._location.key(prefix),
                    **more,
                )
            )
            for kind in ("Versions", "DeleteMarkers"):
                for each in page.get(kind, ()):
                    yield Version(
                        each["Key"][cut:],
                        each["VersionId"],
                        each.get("Size", 0),
                        each["IsLatest"],
                        kind == "DeleteMarkers",
                        each["LastModified"],
                    )
            if not page.get("IsTruncated"):
                return
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "VersionIdMarker": page["NextVersionIdMarker"],
            }

    def remove(self, name: str) -> None:
        """Remove an object for good; LockedVersion, and nothing is removed, if it is locked."""
        found = [version for version in self.versions(name) if version.name == name]
        if any(version.latest and version.marker for version in found):
            return  # what a marker hides is deleted already
        # The latest goes last, or the one before it would be what others see.
        for version in sorted(found, key=lambda version: (version.latest, version.modified_at)):
            self.remove_version(name, version.id)

    def remove_version(self, name: str, version: str) -> None:
        """Remove one version; LockedVersion if it is locked."""
        try:
            _asked(
                lambda: self._client.delete_object(
                    Bucket=self._location.bucket, Key=self._location.key(name), VersionId=version
                )
            )
        except S3Fault as fault:
            if fault.absent:
                return
            until = self.locked_until(name, version) if fault.status in {400, 403} else None
            if until is None:
                raise
            raise LockedVersion(until) from fault


def _asked(request: Callable[[], T]) -> T:
    try:
        return request()
    except ClientError as error:
        # Not `from error`: a server may quote the key in its answer.
        answer = error.response
        code = str(answer.get("Error", {}).get("Code", ""))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        # A HEAD has no body, so botocore gives the status for the code.
        raise S3Fault(status, "" if code.isdigit() else code) from None
    except BotoCoreError as error:
        raise S3Fault(None, "", str(error)) from None
