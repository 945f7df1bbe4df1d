"""Steps to freeze in, from the orders in the settings."""

import pytest

from atoll.director.order import freezing_steps
from atoll.model.errors import ConfigurationError
from atoll.model.inventory import VirtualMachine
from atoll.model.plan import PlannedVm


def vms(names: str) -> list[PlannedVm]:
    return [
        PlannedVm(
            VirtualMachine(
                f"vm-{name}", f"uuid-{name}", name, "esx1", True, False, "", (), False, ""
            ),
            (),
            True,
        )
        for name in names
    ]


@pytest.mark.parametrize(
    ("names", "orders", "steps"),
    [
        ("", [], [[]]),
        ("abc", [], ["abc"]),
        ("abc", ["ca"], ["c", "ab"]),
        ("abcd", ["ab", "bc"], ["a", "b", "cd"]),
        ("abcd", ["ad", "bc", "cd"], ["b", "ac", "d"]),
        ("ac", ["abc"], ["a", "c"]),
        ("b", ["abc"], ["b"]),
        ("abc", ["ab", "cb"], ["ac", "b"]),
    ],
)
def test_each_freezes_before_what_it_feeds_and_as_late_as_can_be(names, orders, steps) -> None:
    expected = tuple(tuple(f"uuid-{name}" for name in step) for step in steps)
    assert freezing_steps(vms(names), orders) == expected


def test_a_vm_can_be_named_by_its_uuid() -> None:
    assert freezing_steps(vms("ab"), [["uuid-b", "a"]]) == (("uuid-b",), ("uuid-a",))


def test_orders_that_go_in_a_circle_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a before b before a|b before a before b"):
        freezing_steps(vms("abc"), ["ab", "ba"])
