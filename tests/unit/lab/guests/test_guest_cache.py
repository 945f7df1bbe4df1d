"""Built once, never half, also when several want it or a builder is killed."""

import threading

import pytest

from atoll_lab.guests.cache import cached, content_key


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOLL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_build_happens_once(cache):
    built = []

    def build(work):
        built.append(work)
        (work / "disk").write_text("content")

    first = cached("db1", "k", build)
    assert cached("db1", "k", build) == first == cache / "db1-k"
    assert (first / "disk").read_text() == "content"
    assert len(built) == 1


def test_a_failed_build_leaves_nothing_and_is_tried_again(cache):
    def fail(work):
        (work / "half").touch()
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        cached("db1", "k", fail)
    assert [path.name for path in cache.iterdir()] == [".db1-k.lock"]
    assert cached("db1", "k", lambda work: (work / "whole").touch()).is_dir()


def test_what_a_killed_builder_left_is_removed(cache):
    left = cache / ".db1-k.building.abc"
    left.mkdir(parents=True)
    (left / "half").touch()
    cached("db1", "k", lambda work: None)
    assert not left.exists()


def test_a_second_builder_waits_and_takes_the_firsts_result():
    building, go_on = threading.Event(), threading.Event()
    built = []

    def build(work):
        built.append(work)
        building.set()
        assert go_on.wait(30)

    results = []
    threads = [
        threading.Thread(target=lambda: results.append(cached("db1", "k", build))) for _ in "12"
    ]
    for thread in threads:
        thread.start()
    assert building.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(built) == 1
    assert results[0] == results[1]


def test_the_key_tells_parts_apart():
    assert content_key([b"ab", b"c"]) != content_key([b"a", b"bc"])
    assert content_key([b"a"]) == content_key([b"a"])
