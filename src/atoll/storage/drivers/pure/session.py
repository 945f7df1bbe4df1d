"""Calls to a FlashArray's REST API through its SDK, with errors in Atoll's words."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any, TypeVar

from atoll.model.errors import (
    AtollError,
    AuthenticationError,
    PoolFullError,
    StorageConflictError,
    StorageUnreachableError,
)
from atoll.storage.drivers.array import PAUSES_SECONDS, ArraySettings, load_sdk

_RETRIES = 5
"""The SDK's own, for answers that say to try later (429, 503), as long as the array asks for."""

_REST = (2, 16)
"""The first version that can keep new volumes out of default protection groups."""

_ABSENT = ("does not exist", "could not be found", "No such", "has been destroyed")
_PRESENT = ("already exists", "already belongs to", "already in use", "already connected")
_FULL = ("Insufficient space", "out of space", "limit reached", "quota")

_Result = TypeVar("_Result")


class ArrayRefusedError(StorageConflictError):
    """The array said no; `said` is its message."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said

    @property
    def absent(self) -> bool:
        """Whether what was named is not there."""
        return any(phrase in self.said for phrase in _ABSENT)

    @property
    def present(self) -> bool:
        """Whether what was to be made is there."""
        return any(phrase in self.said for phrase in _PRESENT)


class FlashArray:
    """One array, logged in to when it is first asked. Thread-safe."""

    def __init__(self, settings: ArraySettings, token: str) -> None:
        self.name = settings.host
        self._settings = settings
        self._sdk = _load("pypureclient.flasharray")
        self._errors = _load("pypureclient.exceptions")
        self._transport = _load("urllib3.exceptions")
        self._token = token
        self._client: Any = None
        self._login = threading.Lock()

    def model(self, kind: str, **fields: object) -> Any:
        """One of the SDK's models."""
        return getattr(self._sdk, kind)(**fields)

    def call(self, function: str, doing: str, **arguments: object) -> list[Any]:
        """The items of the answer, all pages of them.

        `doing` completes "the array could not …". ArrayRefusedError when the array
        says no, PoolFullError when it lacks room, AuthenticationError and
        StorageUnreachableError after some tries.
        """
        return self._patiently(doing, lambda: self._call(function, doing, arguments))

    def make(self, function: str, doing: str, **arguments: object) -> list[Any]:
        """The same for what may be there already, which is right; no items then."""
        try:
            return self.call(function, doing, **arguments)
        except ArrayRefusedError as error:
            if error.present:
                return []
            raise

    def remove(self, function: str, doing: str, **arguments: object) -> None:
        """The same for what may be gone already, which is right."""
        try:
            self.call(function, doing, **arguments)
        except ArrayRefusedError as error:
            if not error.absent:
                raise

    def pages(self, function: str, doing: str, **arguments: object) -> Iterator[list[Any]]:
        """The same page by page, for lists whose continuation the SDK does not know how to ask for."""
        seen, more = 0, True
        while more:
            ask = partial(self._page, function, doing, {**arguments, "offset": seen})
            items, more = self._patiently(doing, ask)
            if more and not items:
                raise StorageUnreachableError(
                    f"FlashArray {self.name} could not {doing}: it has more and gives nothing; see "
                    "the array's alerts, then try again."
                )
            seen += len(items)
            yield items

    def connect(self) -> None:
        """Log in, unless that was done; StorageConflictError when the array is too old."""
        self._patiently("log in", self._connected)

    def _call(self, function: str, doing: str, arguments: dict[str, object]) -> list[Any]:
        items = self._ask(function, doing, arguments).items
        return list(items) if items is not None else []

    def _page(
        self, function: str, doing: str, arguments: dict[str, object]
    ) -> tuple[list[Any], bool]:
        response = self._ask(function, doing, arguments)
        more = getattr(response, "more_items_remaining", None) or response.continuation_token
        return list(islice(response.items, len(response.items))), bool(more)

    def _ask(self, function: str, doing: str, arguments: dict[str, object]) -> Any:
        response = getattr(self._connected(), function)(**arguments)
        if response.status_code != 200:
            raise self._failure(doing, response.status_code, response.errors)
        return response

    def _connected(self) -> Any:
        with self._login:
            return self._logged_in()

    def _logged_in(self) -> Any:
        if self._client is None:
            settings = self._settings
            trust = _load("pypureclient.configuration").Configuration(
                ssl_ca_cert=str(settings.ca_file) if settings.ca_file else None
            )
            trust.verify_ssl = settings.verify  # without it the SDK checks no certificate
            client = self._sdk.Client(
                f"{settings.host}:{settings.port}",
                api_token=self._token,
                configuration=trust,
                retries=_RETRIES,
                timeout=(10.0, settings.request_seconds),
                user_agent="atoll",
            )
            version = client.get_rest_version()
            if tuple(int(part) for part in version.split(".")) < _REST:
                raise StorageConflictError(
                    f"FlashArray {self.name} speaks REST {version} and this driver needs 2.16; "
                    "update Purity."
                )
            self._client = client
        return self._client

    def _patiently(self, doing: str, action: Callable[[], _Result]) -> _Result:
        pauses = iter(PAUSES_SECONDS)
        while True:
            try:
                return action()
            except self._errors.PureError as error:
                failure = self._login_failure(error)
            except (self._transport.HTTPError, OSError) as error:
                failure = self._unreached(doing, error)
            except _ServerFailedError as error:
                failure = StorageUnreachableError(str(error))
            except ValueError as error:
                raise StorageConflictError(
                    f"FlashArray {self.name} and its SDK do not understand each other, so that it "
                    f"could not {doing}: {error}; update py-pure-client."
                ) from error
            pause = next(pauses, None)
            if not failure.retryable or pause is None:
                raise failure
            time.sleep(pause)

    def _failure(self, doing: str, status: int, errors: list[Any]) -> Exception:
        said = "; ".join(
            f"{error.context}: {error.message}" if error.context else str(error.message)
            for error in errors or ()
        )
        text = f"FlashArray {self.name} could not {doing}: {said or f'HTTP status {status}'}"
        if status in (401, 403):
            return AuthenticationError(f"{text}; give the API token's user the role it needs.")
        if status == 429:  # after the SDK's tries
            return StorageUnreachableError(f"{text}; it is busy, try again later.")
        if status == 500:
            return _ServerFailedError(f"{text}; see the array's alerts, then try again.")
        if status > 500:
            return StorageUnreachableError(f"{text}; see the array's alerts, then try again.")
        if any(phrase.lower() in said.lower() for phrase in _FULL):
            return PoolFullError(f"{text}; make room on the array.")
        return ArrayRefusedError(f"{text}; correct what it complains of.", said)

    def _login_failure(self, error: Exception) -> AtollError:
        """The SDK's own error: at logging in, or at the second page of a list."""
        said = str(error)
        if "session token" in said and "(5" not in said and "(429)" not in said:
            return AuthenticationError(
                f"FlashArray {self.name} does not accept the API token; make a new one for "
                "Atoll's user."
            )
        return StorageUnreachableError(
            f"FlashArray {self.name} did not answer as it should: {said}; check the array."
        )

    def _unreached(self, doing: str, error: Exception) -> AtollError:
        cause = getattr(error, "reason", None) or error  # of an error after several tries
        if isinstance(cause, self._transport.SSLError):
            return AuthenticationError(
                f"FlashArray {self.name} did not prove who it is: {cause}; give its authority's "
                "certificate as ca_file."
            )
        return StorageUnreachableError(
            f"FlashArray {self.name} did not answer ({type(cause).__name__}) and could not "
            f"{doing}; check its management address."
        )


def _load(module: str) -> ModuleType:
    return load_sdk(module, "py-pure-client", "pure")


def value(item: Any, *path: str) -> Any:
    """What is there in an item of an answer, or None: the SDK has no attribute for what is null."""
    for name in path:
        item = getattr(item, name, None)
    return item


class _ServerFailedError(Exception):
    """HTTP status 500, which the SDK does not try again."""
