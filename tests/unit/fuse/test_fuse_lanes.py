"""Requests that wait for a slow guest, and room for all others."""

from atoll.fuse.lanes import Lanes
from atoll.fuse.protocol import Operation, Request


def request(unique: int) -> Request:
    return Request(Operation.READ, unique, 1, b"")


def admitted(lanes: Lanes, lane: str, tries: int, first: int = 0) -> int:
    return sum(lanes.admit(lane, request(first + number)) for number in range(tries))


def test_one_lane_gets_a_share_and_others_what_is_left_but_always_one() -> None:
    lanes = Lanes(256)
    taken = [admitted(lanes, f"lane {number}", 200) for number in range(50)]
    assert taken[0] == 15
    assert taken == sorted(taken, reverse=True)
    assert min(taken) >= 1
    assert sum(taken) < 256, "fifty slow guests leave threads for others"


def test_what_waits_is_answered_in_turn_by_those_of_its_lane() -> None:
    lanes = Lanes(40)
    assert admitted(lanes, "slow", 6) == 2
    assert lanes.admit("other", request(50))
    assert [lanes.done("slow") for _ in range(2)] == [request(2), request(3)]
    assert lanes.withdraw(4)
    assert not lanes.withdraw(4)
    assert not lanes.withdraw(50), "it is being answered"
    assert lanes.done("slow") == request(5)
    assert [lanes.done("slow") for _ in range(2)] == [None, None]
    assert lanes.done("other") is None
    assert admitted(lanes, "slow", 6) == 2, "nothing is left of it"


def test_when_it_is_closed_nothing_more_is_begun() -> None:
    lanes = Lanes(4)
    assert admitted(lanes, "slow", 3) == 1
    lanes.close()
    assert lanes.done("slow") is None
    assert not lanes.admit("other", request(9))
