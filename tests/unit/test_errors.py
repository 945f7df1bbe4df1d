"""Errors: each has a code and an exit status of its own."""

import importlib
import pkgutil

import atoll
import atoll_lab
from atoll.model.errors import AtollError


def all_errors() -> list[type[AtollError]]:
    for package in (atoll, atoll_lab):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                # Sidecars run under other interpreters, and raise what Atoll's half knows.
                assert error.name in {"cinder", "os_brick", "rados", "rbd", "rtslib_fb"}
    found, todo = [], [AtollError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return found


def named(attribute: str) -> list[object]:
    """Where a class says its own; one that says nothing is a finer word for its parent."""
    return [vars(kind)[attribute] for kind in all_errors() if attribute in vars(kind)]


def test_no_two_errors_share_a_code() -> None:
    codes = named("code")
    assert sorted(map(str, codes)) == sorted({str(code) for code in codes})


def test_no_two_errors_share_an_exit_status() -> None:
    statuses = named("exit_status")
    assert len(statuses) == len(set(statuses))
    # 0 is success, 2 a usage error, 4 a lesser point.
    assert not {0, 2, 4} & set(statuses)
