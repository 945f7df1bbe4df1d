"""An S3 server and a network that fail: right bytes or a clear error, and nothing believed that is not so."""

import re
import time
from collections.abc import Callable, Iterator

import pytest

from atoll.model.errors import (
    RepositoryUnreachableError,
    RunConflictError,
    StorageConflictError,
)
from atoll.repository import s3_presence
from atoll.repository.s3 import S3Store
from atoll.repository.s3_access import S3Location
from atoll.repository.s3_faults import Patience
from atoll.repository.s3_presence import Rhythm
from s3_proxy import Answer, Cut, First, Late, ResetAfter, ResetBefore, Rewrite, S3Proxy
from s3_site import S3Site

PACK = bytes(range(256)) * 4096


@pytest.fixture
def proxy(s3: S3Site) -> Iterator[S3Proxy]:
    with s3.proxy() as made:
        yield made


@pytest.fixture
def where(s3: S3Site) -> S3Location:
    return s3.location()


@pytest.fixture
def store(s3: S3Site, proxy: S3Proxy, where: S3Location) -> S3Store:
    """A store behind the proxy that has learned what the server can."""
    made = s3.store(where, proxy.endpoint)
    made.put("points/before", [b"x"])
    proxy.seen.clear()
    return made


@pytest.fixture
def direct(s3: S3Site, where: S3Location) -> S3Store:
    """The same place, past the proxy."""
    return s3.store(where)


def lacking(*names: str) -> Callable[[bytes], bytes]:
    """A listing without these objects, as of a server that lists late."""

    def without(listing: bytes) -> bytes:
        for name in names:
            listing = re.sub(
                rb"<Contents>(?:(?!</Contents>).)*"
                + name.encode()
                + rb"(?:(?!</Contents>).)*</Contents>",
                b"",
                listing,
                flags=re.DOTALL,
            )
        return listing

    return without


def test_a_pack_goes_in_one_request(store: S3Store, proxy: S3Proxy) -> None:
    store.put("packs/ab/one", [PACK * 32])
    assert [(each.method, len(each.body)) for each in proxy.seen] == [("PUT", 32 << 20)]
    assert dict(proxy.seen[0].headers)["if-none-match"] == "*"


def test_throttled_requests_wait_longer_and_longer(s3: S3Site, proxy: S3Proxy) -> None:
    sleeps: list[float] = []
    store = s3.store(endpoint=proxy.endpoint, patience=Patience(5, 1.0, 3.0, sleeps.append))
    proxy.on("PUT", "/probes/", Answer(503, "SlowDown"))
    proxy.on("PUT", "/packs/", *[Answer(503, "SlowDown")] * 4)
    store.put("packs/ab/one", [PACK])
    proxy.on("GET", "/packs/", Answer(500, "InternalError"), Answer(503, "ServiceUnavailable"))
    assert store.get("packs/ab/one") == PACK
    assert proxy.left == 0
    limits = [1.0, 1.0, 2.0, 3.0, 3.0, 1.0, 2.0]
    assert len(sleeps) == len(limits)
    assert all(limit / 2 <= slept <= limit for slept, limit in zip(sleeps, limits, strict=True))


@pytest.mark.parametrize(
    "fault",
    [Answer(500, "InternalError"), Answer(503, "SlowDown"), ResetBefore(), ResetAfter(), Late()],
    ids=lambda fault: type(fault).__name__ + str(getattr(fault, "status", "")),
)
def test_a_put_that_failed_once_is_done_once(
    store: S3Store, direct: S3Store, proxy: S3Proxy, fault: object
) -> None:
    proxy.on("PUT", "/packs/", fault)  # type: ignore[arg-type]
    store.put("packs/ab/one", [PACK, b"end"])
    assert proxy.left == 0
    assert direct.get("packs/ab/one") == PACK + b"end"
    assert [info.name for info in direct.list("packs/")] == ["packs/ab/one"]
    proxy.release()  # a request that the network held back comes in after all
    assert direct.get("packs/ab/one") == PACK + b"end"


def test_a_lost_answer_does_not_hide_that_the_name_was_taken(
    store: S3Store, direct: S3Store, proxy: S3Proxy
) -> None:
    direct.put("packs/ab/same-size", [b"theirs"])
    direct.put("packs/ab/longer", [b"theirs, longer"])
    for name in ("packs/ab/same-size", "packs/ab/longer"):
        proxy.on("PUT", name, ResetAfter())
        with pytest.raises(StorageConflictError, match="the name is taken"):
            store.put(name, [b"mine!!"])
        assert direct.get(name).startswith(b"theirs")
    assert proxy.left == 0


def test_where_the_server_heeds_no_condition_a_lost_answer_is_no_conflict_either(
    s3: S3Site, proxy: S3Proxy
) -> None:
    where = s3.location(s3.bucket(versions=True))
    store = s3.store(where, proxy.endpoint)
    proxy.on("PUT", "/packs/", ResetAfter())
    store.put("packs/ab/one", [PACK])
    assert proxy.left == 0
    assert [each.method for each in proxy.seen if "/packs/" in each.target] == [
        "HEAD", "PUT", "HEAD", "HEAD", "GET",
    ]  # fmt: skip
    assert s3.store(where).get("packs/ab/one") == PACK


def test_a_server_that_knows_no_condition_is_asked_for_none(
    s3: S3Site, proxy: S3Proxy, where: S3Location
) -> None:
    proxy.on("PUT", "/probes/", Answer(501, "NotImplemented"))
    store = s3.store(where, proxy.endpoint)
    store.put("packs/ab/one", [PACK])
    with pytest.raises(StorageConflictError):
        store.put("packs/ab/one", [b"other"])
    puts = [each for each in proxy.seen if each.method == "PUT" and "/packs/" in each.target]
    assert len(puts) == 1
    assert "if-none-match" not in dict(puts[0].headers)


def test_an_answer_that_breaks_off_is_never_taken_for_whole(store: S3Store, proxy: S3Proxy) -> None:
    store.put("packs/ab/one", [PACK])
    proxy.on("GET", "/packs/", Cut(0), Cut(1000), Cut(len(PACK) - 1))
    assert store.get("packs/ab/one") == PACK
    proxy.on("GET", "/packs/", Cut(10), ResetBefore(), ResetAfter())
    assert store.get_range("packs/ab/one", 5000, 2000) == PACK[5000:7000]
    assert proxy.left == 0


def test_what_fails_again_and_again_is_an_error_that_says_why(
    store: S3Store, direct: S3Store, proxy: S3Proxy
) -> None:
    direct.put("packs/ab/one", [PACK])
    for act, reason in (
        (Answer(503, "SlowDown"), "it answered 503 SlowDown again and again; run again when"),
        (ResetBefore(), "the connection broke; make it reachable"),
        (Answer(403, "AccessDenied"), "it answered 403 AccessDenied; check the keys"),
        (Answer(403, "RequestTimeTooSkewed"), "set this machine's clock"),
        (Answer(507, "InsufficientStorage"), "free space there"),
        (Answer(404, "NoSuchBucket"), "there is no such bucket"),
        (Answer(501, "NotImplemented"), "may lack something that Atoll needs"),
    ):
        for method, call in (
            ("PUT", lambda: store.put("packs/ab/new", [b"x"])),
            ("GET", lambda: store.get("packs/ab/one")),
            ("GET", lambda: store.get_range("packs/ab/one", 1, 5)),
            ("GET", lambda: list(store.list("packs/"))),
            ("DELETE", lambda: store.delete("packs/ab/one")),
        ):
            proxy.on(method, "", act, always=True)
            with pytest.raises(RepositoryUnreachableError, match=reason) as caught:
                call()
            assert "AKIA" not in str(caught.value)
            assert str(caught.value.__cause__) == "None"
            proxy.clear()
    assert [info.name for info in direct.list("packs/")] == ["packs/ab/one"]


def test_a_put_that_failed_for_good_leaves_the_name_free(
    store: S3Store, direct: S3Store, proxy: S3Proxy
) -> None:
    proxy.on("PUT", "/packs/", ResetBefore(), always=True)
    with pytest.raises(RepositoryUnreachableError):
        store.put("packs/ab/one", [PACK])
    proxy.clear()
    assert list(direct.list("packs/")) == []
    store.put("packs/ab/one", [PACK])


def test_nobody_at_the_endpoint_is_told_from_a_wrong_key(s3: S3Site, proxy: S3Proxy) -> None:
    with s3.proxy() as gone:
        pass
    with pytest.raises(RepositoryUnreachableError, match="it refused the connection"):
        s3.store(endpoint=gone.endpoint).get("config")
    with pytest.raises(RepositoryUnreachableError, match="there is no such bucket"):
        s3.store(S3Location("no-bucket-of-that-name", "x")).get("config")
    wrong = s3.directory / "wrong"
    wrong.write_text(
        f"[default]\naws_access_key_id={s3.gateway.access_key}\naws_secret_access_key=GuEsSeD\n"
    )
    with pytest.raises(RepositoryUnreachableError, match="SignatureDoesNotMatch") as caught:
        s3.store(credentials_file=wrong).put("config", [b"x"])
    assert "GuEsSeD" not in repr(caught.value)
    assert s3.gateway.access_key not in str(caught.value)


def test_a_listing_goes_on_where_it_broke(store: S3Store, proxy: S3Proxy) -> None:
    put = [f"packs/ab/{number:02}" for number in range(7)]
    for name in put:
        store.put(name, [b"x"])
    proxy.on("GET", "list-type", Answer(503, "SlowDown"), Cut(200), ResetAfter())
    assert [info.name for info in store.list("packs/")] == put
    assert proxy.left == 0


def test_a_listing_that_lags_behind_is_not_relied_on(
    store: S3Store, direct: S3Store, proxy: S3Proxy
) -> None:
    session = direct.join(b"at work")
    # The clock that the asker has just put is newer than all, so a listing without it is old.
    proxy.on("GET", "sessions", Rewrite(lacking("[.]clock")), always=True)
    with pytest.raises(RepositoryUnreachableError, match="does not list what was written"):
        store.sessions()
    proxy.clear()
    proxy.on("GET", "sessions", Rewrite(lacking("[.]clock", session.name)))
    assert [seen.name for seen in store.sessions()] == [session.name]
    assert proxy.left == 0
    proxy.on("GET", "maintenance", Rewrite(lacking("maintenance")), always=True)
    with pytest.raises(RepositoryUnreachableError, match="does not list"):
        store.maintain()
    assert [info.name for info in direct.list("maintenance/")] == []
    session.end()


def test_a_session_is_written_again_by_itself(s3: S3Site, where: S3Location) -> None:
    store = s3.store(where, rhythm=Rhythm(interval_seconds=0.05, limit_seconds=600))
    session = store.join(b"at work")
    key = where.key(f"sessions/{session.name}")
    before = s3.client.list_objects_v2(Bucket=where.bucket, Prefix=key)["Contents"][0]
    while True:
        now = s3.client.list_objects_v2(Bucket=where.bucket, Prefix=key)["Contents"][0]
        if now["LastModified"] > before["LastModified"]:
            break
        time.sleep(0.02)
    assert store.get(f"sessions/{session.name}") == b"at work"
    session.end()
    assert list(store.list("sessions/")) == []


def test_whoever_was_silent_for_long_counts_himself_as_dead(
    s3: S3Site, where: S3Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3.store(where)
    session, lock = store.join(b"slept"), store.maintain()
    store.put("packs/ab/one", [PACK])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(s3_presence, "_clock", lambda: now + 1100)
    session.confirm()
    monkeypatch.setattr(s3_presence, "_clock", lambda: now + 1300)  # two thirds are 1200
    with pytest.raises(RunConflictError, match="taken for dead"):
        session.confirm()
    with pytest.raises(RunConflictError):
        store.delete("packs/ab/one")
    with pytest.raises(RunConflictError):
        store.replace("packs/ab/one", [b"other"])
    assert store.get("packs/ab/one") == PACK
    # It stays dead although it could write again, and does not come back.
    store._objects.delete(f"sessions/{session.name}")
    session.beat()
    assert list(store.list("sessions/")) == []
    monkeypatch.setattr(s3_presence, "_clock", lambda: now)
    with pytest.raises(RunConflictError):
        session.confirm()
    lock.release()
    session.end()
    store.delete("packs/ab/one")


def test_a_write_that_took_too_long_does_not_bring_a_session_back_to_life(
    s3: S3Site, proxy: S3Proxy, where: S3Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = s3.store(where, proxy.endpoint).join(b"slow")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)

    def long() -> None:
        monkeypatch.setattr(s3_presence, "_clock", lambda: now + 1900)

    # It begins in good time, and when it ends others may have removed the session, after 1800 s.
    monkeypatch.setattr(s3_presence, "_clock", lambda: now + 1190)
    proxy.on("PUT", "/sessions/", First(long))
    session.beat()
    assert proxy.left == 0
    with pytest.raises(RunConflictError):
        session.confirm()
    session.end()


def test_an_old_word_that_comes_in_late_does_not_take_the_place_of_a_new_one(
    store: S3Store, direct: S3Store, proxy: S3Proxy
) -> None:
    session = store.join(b"old")
    name = session.name
    proxy.on("PUT", "/sessions/", Late())
    assert not session.beat()
    session.say(b"new")
    assert proxy.release() == 1
    said = {seen.name: seen.said for seen in direct.sessions()}
    assert said.pop(name) == b"old"
    assert said == {session.name: b"new"}
    session.end()
    assert [seen.name for seen in direct.sessions()] == [name]  # until it is old


def test_a_session_that_goes_on_under_another_name_is_not_overlooked(
    store: S3Store, direct: S3Store, proxy: S3Proxy
) -> None:
    session = direct.join(b"old")
    session._doubtful = True

    def move() -> None:
        session.say(b"new")

    proxy.on("GET", f"sessions/{session.name}", First(move))
    assert [seen.said for seen in store.sessions()] == [b"new"]
    assert proxy.left == 0
    session.end()


def test_the_store_that_is_gone_ends_no_session_silently(store: S3Store, proxy: S3Proxy) -> None:
    session = store.join(b"at work")
    proxy.on("HEAD", "", ResetBefore(), always=True)
    with pytest.raises(RepositoryUnreachableError, match="look for oneself"):
        session.confirm()
    proxy.clear()
    session.confirm()
    session.end()


def test_the_server_is_proven_by_its_certificate(s3: S3Site, where: S3Location) -> None:
    with s3.tls_proxy() as (proxy, authority):
        for extra in ({}, {"lock_days": 1}):
            store = s3.store(where, proxy.endpoint, **extra)
            with pytest.raises(RepositoryUnreachableError, match="certificate is not trusted"):
                store.put("packs/ab/one", [PACK])
        trusting = s3.store(where, proxy.endpoint, ca_file=authority)
        trusting.put("packs/ab/one", [PACK])
        assert trusting.get("packs/ab/one") == PACK
