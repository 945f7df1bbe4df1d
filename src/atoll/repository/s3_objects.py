"""The requests that Atoll makes of an S3 server, each once, by obstore."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from obstore.exceptions import BaseError
from obstore.store import S3Store as Client

from atoll.repository.s3_access import S3Access, S3Location
from atoll.repository.s3_faults import S3Fault

T = TypeVar("T")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_CONNECT = timedelta(seconds=20)
_REQUEST = timedelta(minutes=5)
"""For all of a request: 32 MiB at a little less than 1 Mbit/s."""
_PAGE = 1000  # what S3 lists at once


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object, or a marker that hides the versions before it."""

    name: str
    id: str
    size_bytes: int
    latest: bool
    marker: bool
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """An object as listed; `modified_at` is told by the server's clock."""

    name: str
    size_bytes: int
    modified_at: datetime


class S3Objects:
    """Objects under the location's prefix. Every method raises S3Fault and repeats nothing."""

    def __init__(self, location: S3Location, access: S3Access) -> None:
        credentials = access.credentials()
        server = access.server()
        config: dict[str, Any] = {
            "access_key_id": credentials.access_key,
            "secret_access_key": credentials.secret_key,
            "region": access.where(),
            "virtual_hosted_style_request": False,
            "conditional_put": "etag",
            # One request an object: the other way answers 200 with errors inside.
            "disable_bulk_delete": True,
        }
        if credentials.token:
            config["session_token"] = credentials.token
        options: dict[str, Any] = {"connect_timeout": _CONNECT, "timeout": _REQUEST}
        if server is not None:
            config["endpoint"] = server
            options["allow_http"] = server.startswith("http://")
        if (authority := access.authority()) is not None:
            options["root_certificate"] = authority
        self._client = Client(
            location.bucket,
            prefix=location.prefix or None,
            config=config,
            client_options=options,
            retry_config={"max_retries": 0},
        )

    def create(self, name: str, data: bytes) -> str | None:
        """Put where nothing is, if the server heeds `If-None-Match`; the version where there are any."""
        return self._put(name, data, "create")

    def write(self, name: str, data: bytes) -> str | None:
        """Put over what is there; the version where there are any."""
        return self._put(name, data, "overwrite")

    def _put(self, name: str, data: bytes, mode: str) -> str | None:
        done = _asked(lambda: self._client.put(name, data, mode=mode, use_multipart=False))
        version: str | None = done["version"]
        return version

    def get(self, name: str) -> bytes:
        """The whole object."""
        data: bytes = _asked(lambda: self._client.get(name).bytes().to_bytes())
        return data

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Part of the object; S3Fault 416 where it has nothing."""
        data: bytes = _asked(
            lambda: self._client.get_range(name, start=offset, length=length).to_bytes()
        )
        return data

    def size(self, name: str) -> int:
        """The object's size."""
        size: int = _asked(lambda: self._client.head(name)["size"])
        return size

    def list(self, folder: str, after: str | None = None) -> Iterator[Found]:
        """What lies in a folder, by name, from `after` on."""
        pages = iter(self._client.list(folder, offset=after, chunk_size=_PAGE))
        while True:
            page = _asked(lambda: next(pages, None))
            if page is None:
                return
            for info in page:
                yield Found(info["path"], info["size"], info["last_modified"])

    def delete(self, name: str) -> None:
        """Remove the object, or hide it where there are versions; the absent is removed already."""
        try:
            _asked(lambda: self._client.delete(name))
        except S3Fault as fault:
            if not fault.absent:
                raise


def _asked(request: Callable[[], T]) -> T:
    try:
        return request()
    except (BaseError, OSError) as error:
        text = str(error)
        status = _STATUS.search(text)
        code = _CODE.search(text)
        # Not `from error`: a server may quote the key in its answer.
        raise S3Fault(int(status[1]) if status else None, code[1] if code else "", text) from None
