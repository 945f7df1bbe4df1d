"""What is asked again, how often, after which pause, and what a listing does when it breaks."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import cast

import pytest

from atoll.model.errors import RepositoryUnreachableError
from atoll.repository.s3 import S3Store
from atoll.repository.s3_access import S3Location
from atoll.repository.s3_faults import Patience, S3Fault
from atoll.repository.s3_objects import Found, S3Objects


@pytest.mark.parametrize(
    ("status", "code", "passing"),
    [
        (None, "", True),
        (503, "SlowDown", True),
        (500, "InternalError", True),
        (429, "TooManyRequests", True),
        (409, "ConditionalRequestConflict", True),
        (400, "RequestTimeout", True),
        (409, "BucketAlreadyExists", False),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
        (412, "PreconditionFailed", False),
        (416, "InvalidRange", False),
        (501, "NotImplemented", False),
    ],
)
def test_what_may_pass_is_tried_again_and_nothing_else(
    status: int | None, code: str, passing: bool
) -> None:
    sleeps: list[float] = []
    tries: list[int] = []
    half_done: list[int] = []

    def work() -> None:
        tries.append(1)
        raise S3Fault(status, code)

    patience = Patience(6, 1.0, 5.0, sleeps.append)
    with pytest.raises(S3Fault) as caught:
        patience.run(work, lambda: half_done.append(1))
    assert len(tries) == (6 if passing else 1)
    assert caught.value.failures == len(tries) - 1
    assert len(half_done) == (6 if passing else 0)
    limits = [1.0, 2.0, 4.0, 5.0, 5.0][: len(tries) - 1]
    assert all(limit / 2 <= slept <= limit for slept, limit in zip(sleeps, limits, strict=True))


def test_a_certificate_does_not_become_good_by_asking_again() -> None:
    for text in ("InvalidCertificate(UnknownIssuer)", "[SSL: CERTIFICATE_VERIFY_FAILED]"):
        fault = S3Fault(None, "", text)
        assert not fault.passing
        assert "ca_file" in fault.reason()


def test_a_missing_bucket_is_no_missing_object() -> None:
    assert S3Fault(404, "NoSuchKey").absent
    assert S3Fault(404, "").absent
    assert not S3Fault(404, "NoSuchBucket").absent


class BreakingList:
    """Lists ten objects and breaks after every third, so many times."""

    def __init__(self, breaks: int) -> None:
        self.names = [f"packs/ab/{number}" for number in range(10)]
        self.asked: list[str | None] = []
        self._breaks = breaks

    def list(self, folder: str, after: str | None) -> Iterator[Found]:
        self.asked.append(after)
        left = [name for name in self.names if after is None or name > after]
        for number, name in enumerate(left):
            if number == 3 and self._breaks:
                self._breaks -= 1
                raise S3Fault(503, "SlowDown")
            yield Found(name, 7, datetime.now(UTC))


def test_a_listing_goes_on_behind_what_it_gave() -> None:
    objects = BreakingList(breaks=2)
    patience = Patience(attempts=2, sleep=lambda _: None)
    store = S3Store(S3Location("bucket", ""), cast(S3Objects, objects), patience=patience)
    assert [info.name for info in store.list("packs/")] == objects.names
    assert objects.asked == [None, "packs/ab/2", "packs/ab/5"]


def test_a_listing_that_breaks_for_good_is_an_error_and_not_short() -> None:
    class Broken:
        def list(self, folder: str, after: str | None) -> Iterator[Found]:
            if after is None:
                yield Found("packs/ab/0", 7, datetime.now(UTC))
            raise S3Fault(503, "SlowDown")

    patience = Patience(attempts=3, sleep=lambda _: None)
    store = S3Store(S3Location("bucket", ""), cast(S3Objects, Broken()), patience=patience)
    listing = store.list("packs/")
    assert next(listing).name == "packs/ab/0"
    with pytest.raises(RepositoryUnreachableError, match="503 SlowDown"):
        next(listing)
