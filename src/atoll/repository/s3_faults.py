"""What an S3 server may answer instead of doing what it was asked, and how often to ask again."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from atoll.model.errors import AtollError, RepositoryUnreachableError, StorageConflictError

T = TypeVar("T")

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_LATER = frozenset({"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown"})
_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"})
_UNTRUSTED = re.compile(r"InvalidCertificate|invalid peer certificate|CERTIFICATE_VERIFY_FAILED")
_CAUSES = (
    (re.compile(r"dns error|failed to lookup|NameResolution"), "its name is not known"),
    (re.compile(r"ConnectionRefused|Connection refused"), "it refused the connection"),
    (re.compile(r"TimedOut|timed out"), "it took too long"),
)


class S3Fault(Exception):
    """A request that was not done, or not known to be.

    `status` is the HTTP status, None without an answer; `code` is S3's name of the error, or empty;
    `failures` counts the attempts of the same request that failed before this one.
    """

    def __init__(self, status: int | None, code: str, text: str = "") -> None:
        super().__init__(f"{status or 'no answer'} {code}".rstrip())
        self.status = status
        self.code = code
        self.failures = 0
        self._text = text

    @property
    def absent(self) -> bool:
        """Whether there is no such object."""
        return self.status == 404 and self.code not in {"NoSuchBucket", "NoSuchUpload"}

    @property
    def exists(self) -> bool:
        """Whether there is such an object, which was not to be."""
        return self.status == 412

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        if self.status is None:
            return not self._untrusted
        return self.status in _PASSING or self.code in _LATER

    @property
    def _untrusted(self) -> bool:
        return self.status is None and _UNTRUSTED.search(self._text) is not None

    def reason(self) -> str:
        """What went wrong and what to do about it, as the end of a sentence."""
        if self._untrusted:
            return "its certificate is not trusted; name its authority in `ca_file`."
        if self.status is None:
            known = (said for sign, said in _CAUSES if sign.search(self._text))
            return f"{next(known, 'the connection broke')}; make it reachable and run again."
        answer = f"it answered {self}"
        if self.code == "NoSuchBucket":
            return "there is no such bucket; make it or correct the location."
        if self.code in _FULL or self.status == 507:
            return f"{answer}; free space there and run again."
        if self.code == "RequestTimeTooSkewed":
            return f"{answer}; set this machine's clock."
        if self.status in {401, 403}:
            return f"{answer}; check the keys and what they are allowed to do."
        if self.passing:
            return f"{answer} again and again; run again when it is less busy."
        return f"{answer}; it may lack something that Atoll needs of S3."


class LockedVersion(Exception):
    """A version of an object cannot be removed before `until`."""

    def __init__(self, until: datetime) -> None:
        super().__init__(str(until))
        self.until = until


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is made, and the seconds in between, which double up to `longest_seconds`."""

    attempts: int = 8
    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def run(self, work: Callable[[], T], failed: Callable[[], None] = lambda: None) -> T:
        """Do the work until it is done or will not be; `failed` is called where it may be half done."""
        failures = 0
        while True:
            try:
                return work()
            except S3Fault as fault:
                fault.failures = failures
                if fault.passing:
                    failed()
                failures += 1
                self.pause(fault, failures)

    def pause(self, fault: S3Fault, failures: int) -> None:
        """Wait before the next attempt; raises the fault if there is to be none."""
        if not fault.passing or failures >= self.attempts:
            raise fault
        seconds = min(self.first_seconds * 2 ** (failures - 1), self.longest_seconds)
        # Clients that were turned away together must not come back together.
        self.sleep(seconds * random.uniform(0.5, 1))  # noqa: S311 - nothing to guess here


def explained(fault: S3Fault, doing: str, where: str) -> AtollError:
    """The error for people: `doing` is what could not be done."""
    if fault.exists:
        return StorageConflictError(
            f"Could not {doing} {where}: the name is taken and was left as it is; open what is "
            "there instead of making it anew."
        )
    return RepositoryUnreachableError(f"Could not {doing} {where}: {fault.reason()}")
