"""Calls to ONTAP's REST API through its SDK, with errors in Atoll's words."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from atoll.model.errors import (
    AtollError,
    AuthenticationError,
    PoolFullError,
    StorageConflictError,
    StorageUnreachableError,
)
from atoll.storage.drivers.array import PAUSES_SECONDS, ArraySettings, load_sdk

_PACKAGE, _EXTRA = "netapp-ontap", "ontap"
_POLL_SECONDS = 1
_AGAIN = (429, 500, 502, 503, 504)
_LONGEST_PAUSE_SECONDS = 30.0
_FULL = ("no space", "not enough space", "insufficient space", "out of space", "ran out of")

_Result = TypeVar("_Result")


class OntapRefusedError(StorageConflictError):
    """The cluster said no, or a job of its failed."""


class Ontap:
    """One cluster, or one SVM of it, by its management address. Thread-safe.

    Resources are named as the SDK's classes are; `query` and `body` are the REST
    API's. `doing` completes "ONTAP could not …" in messages. OntapRefusedError when
    the cluster says no, PoolFullError when it lacks room, AuthenticationError, and
    StorageUnreachableError after some tries.
    """

    def __init__(
        self, settings: ArraySettings, user: str, password: str, job_seconds: float
    ) -> None:
        self.name = settings.host
        self._settings = settings
        self._user = user
        self._password = password
        self._job_seconds = job_seconds
        self._sdk = load_sdk("netapp_ontap", _PACKAGE, _EXTRA)
        self._transport = load_sdk("requests.exceptions", _PACKAGE, _EXTRA)
        self._resources = load_sdk("netapp_ontap.resources", _PACKAGE, _EXTRA)
        self._failed = load_sdk("netapp_ontap.error", _PACKAGE, _EXTRA).NetAppRestError
        self._connections = threading.local()

    def find(self, kind: str, fields: str, *parents: str, **query: object) -> list[dict[str, Any]]:
        """All records that match, with these fields."""
        resource = getattr(self._resources, kind)

        def ask() -> list[dict[str, Any]]:
            found = resource.fast_get_collection(
                *parents, connection=self._connection(), fields=fields, **query
            )
            return [each.resource_data for each in found]

        return self._patiently(f"list {kind} objects", ask)

    def only(self, kind: str, fields: str, doing: str) -> dict[str, Any]:
        """The record of something there is one of."""
        resource = getattr(self._resources, kind)

        def ask() -> dict[str, Any]:
            known = resource()
            known.set_connection(self._connection())
            known.get(fields=fields)
            return dict(known.to_dict())

        return self._patiently(doing, ask)

    def make(
        self, kind: str, doing: str, body: Mapping[str, object], *parents: str, **query: object
    ) -> None:
        """Create something and wait until it is there."""
        resource = getattr(self._resources, kind)

        def ask() -> None:
            fresh = resource.from_dict(dict(body), *parents)
            fresh.set_connection(self._connection())
            fresh.post(poll=True, **query)

        self._patiently(doing, ask)

    def change(
        self, kind: str, doing: str, keys: Mapping[str, str], body: Mapping[str, object],
        **query: object,
    ) -> None:  # fmt: skip
        """Change something and wait until it is so."""
        resource = getattr(self._resources, kind)

        def ask() -> None:
            known = resource(**keys)
            known.set_connection(self._connection())
            for key, value in body.items():
                setattr(known, key, value)
            known.patch(poll=True, **query)

        self._patiently(doing, ask)

    def remove(
        self, kind: str, doing: str, keys: Mapping[str, str], *parents: str, **query: object
    ) -> None:
        """Delete something and wait until it is gone; absent is success."""
        resource = getattr(self._resources, kind)

        def ask() -> None:
            known = resource(*parents, **keys)
            known.set_connection(self._connection())
            known.delete(poll=True, **query)

        try:
            self._patiently(doing, ask)
        except _AbsentError:
            return

    def _connection(self) -> Any:
        # A connection carries its session's state, so no two threads use one.
        connection = getattr(self._connections, "mine", None)
        if connection is None:
            settings = self._settings
            connection = self._sdk.HostConnection(
                settings.host,
                username=self._user,
                password=self._password,
                port=settings.port,
                verify=_authorities(settings) if settings.verify else False,
                poll_timeout=int(self._job_seconds),
                poll_interval=_POLL_SECONDS,
                protocol_timeouts=(10.0, settings.request_seconds),
            )
            # Or variables for other programs (a proxy, another set of authorities) would count for
            # more than the settings.
            connection.session.trust_env = False
            self._connections.mine = connection
        return connection

    def _patiently(self, doing: str, ask: Callable[[], _Result]) -> _Result:
        pauses = iter(PAUSES_SECONDS)
        while True:
            try:
                return ask()
            except self._failed as error:
                failure, asked = self._failure(doing, error), _asked_pause(error)
            except (self._transport.RequestException, OSError) as error:
                failure, asked = self._unreached(doing, error), 0.0
            except ValueError as error:
                raise StorageConflictError(
                    f"ONTAP at {self.name} and its SDK do not understand each other, so that it "
                    f"could not {doing}: {error}; update netapp-ontap."
                ) from error
            pause = next(pauses, None)
            if not failure.retryable or pause is None:
                raise failure
            time.sleep(min(max(pause, asked), _LONGEST_PAUSE_SECONDS))

    def _failure(self, doing: str, error: Any) -> AtollError:
        status = error.status_code
        said = ((error.response_body or {}).get("error") or {}).get("message") or str(error)
        text = f"ONTAP at {self.name} could not {doing}: {said.rstrip('.')}"
        if status is None:
            cause = getattr(error, "cause", None)
            if isinstance(cause, self._transport.RequestException):
                return self._unreached(doing, cause)
            if "timed out" in said:
                return _StillRunningError(f"{text}; see the cluster's jobs, then repeat the call.")
        if status in (401, 403):
            return AuthenticationError(f"{text}; correct the user, its password or its role.")
        if status in _AGAIN:
            return StorageUnreachableError(f"{text}; see the cluster's health, then try again.")
        if status == 404:
            return _AbsentError(f"{text}; it is not there.")
        if any(phrase in said.lower() for phrase in _FULL):
            return PoolFullError(f"{text}; make room in the aggregate or the FlexVol.")
        return OntapRefusedError(f"{text}; correct what it complains of.")

    def _unreached(self, doing: str, error: Exception) -> AtollError:
        if isinstance(error, self._transport.SSLError):
            return AuthenticationError(
                f"ONTAP at {self.name} did not prove who it is: {error}; give its authority's "
                "certificate as ca_file."
            )
        return StorageUnreachableError(
            f"ONTAP at {self.name} did not answer ({type(error).__name__}) and could not {doing}; "
            "check its management address."
        )


class _AbsentError(OntapRefusedError):
    """HTTP status 404."""


class _StillRunningError(StorageUnreachableError):
    """A job outlasted our patience; to start it again at once would not help."""

    retryable = False


def _authorities(settings: ArraySettings) -> str | bool:
    """Whom to trust: a file, or a directory of files under their hashes."""
    if settings.ca_file is not None:
        return str(settings.ca_file)
    system = ssl.get_default_verify_paths()
    return system.cafile or system.capath or True


def _asked_pause(error: Any) -> float:
    """Seconds the cluster asks to wait (RFC 9110, 10.2.3), as far as it says so in seconds."""
    answer = error.http_err_response
    said = answer.http_response.headers.get("Retry-After", "") if answer is not None else ""
    return float(said) if said.isdigit() else 0.0


def at(record: Mapping[str, Any], *path: str) -> Any:
    """What is there in a record, or None."""
    found: Any = record
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def waits(seconds: float, pause: float) -> Iterator[None]:
    """Again and again, with pauses, until the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(pause)
