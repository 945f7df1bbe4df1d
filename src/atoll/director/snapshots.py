"""The storage's snapshots of one hold: asked for all at once, and waited for only so long.

A storage system that never answers must cost neither guests nor the run their
end, so each call has a thread that nobody waits for when the process ends.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import GroupSnapshot
from atoll.storage.interface import StorageEngine

_T = TypeVar("_T")


class AskedSnapshots:
    """Snapshots called `name` of LUN groups, asked for when this is made."""

    def __init__(self, engine: StorageEngine, groups: Sequence[str], name: str) -> None:
        self._name = name
        self._answers = _ask_all(groups, lambda group: engine.snapshot_group(group, name))

    def wait(self, limit: float) -> None:
        """Wait until all are there, one failed, or `time.monotonic()` is at the limit."""
        seconds = max(0.0, limit - time.monotonic())
        wait(self._answers.values(), seconds, return_when=FIRST_EXCEPTION)

    @property
    def taken(self) -> frozenset[str]:
        """The groups whose snapshot the storage has reported done."""
        return frozenset(
            group
            for group, answer in self._answers.items()
            if answer.done() and answer.exception() is None
        )

    @property
    def silent(self) -> tuple[str, ...]:
        """The groups about which the storage has said nothing yet."""
        return _silent(self._answers)

    def results(self, seconds: float) -> Mapping[str, GroupSnapshot]:
        """All of them, by group; waits until the storage has said something about each.

        Raises its error for the first that failed, and StorageUnreachableError
        when it has not said anything about one within `seconds`.
        """
        return _results(
            self._answers,
            seconds,
            f"snapshot {{}}, also not within {seconds:g} s after all guests were let go; see whether "
            f"it is well. Should snapshot {self._name} appear later, the next run or `atoll cleanup` "
            "deletes it.",
        )


def delete_snapshots(
    engine: StorageEngine, groups: Sequence[str], name: str, seconds: float
) -> None:
    """Delete the snapshots of that name of all groups. Idempotent.

    Raises the storage's error for the first that failed, and
    StorageUnreachableError when it has not said anything about one within `seconds`.
    """
    _results(
        _ask_all(groups, lambda group: engine.delete_snapshot(group, name)),
        seconds,
        f"delete snapshot {name} of {{}} within {seconds:g} s; the next run or `atoll cleanup` "
        "deletes it.",
    )


def _ask_all(groups: Sequence[str], call: Callable[[str], _T]) -> dict[str, Future[_T]]:
    """Call for each group at once; the answers by group."""
    answers: dict[str, Future[_T]] = {group: Future() for group in groups}

    def ask(group: str) -> None:
        try:
            answers[group].set_result(call(group))
        except BaseException as error:  # noqa: BLE001 (whoever wants the result is given it)
            answers[group].set_exception(error)

    for group in groups:
        threading.Thread(target=ask, args=(group,), name=f"storage-{group}", daemon=True).start()
    return answers


def _silent(answers: Mapping[str, Future[_T]]) -> tuple[str, ...]:
    return tuple(group for group, answer in answers.items() if not answer.done())


def _results(answers: Mapping[str, Future[_T]], seconds: float, not_done: str) -> Mapping[str, _T]:
    """The results by group; `not_done` says to what the storage did not answer, `{}` the groups."""
    wait(answers.values(), seconds)
    failures = [why for each in answers.values() if each.done() and (why := each.exception())]
    if silent := _silent(answers):
        named = f"LUN group{'' if len(silent) == 1 else 's'} {', '.join(silent)}"
        silence = StorageUnreachableError(
            f"The storage did not answer when asked to {not_done.format(named)}"
        )
        for why in failures:
            silence.add_note(str(why))
        raise silence
    if failures:
        raise failures[0]
    return {group: answer.result() for group, answer in answers.items()}
