"""Slots: never more at once than the settings say, in however many processes."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from atoll.model.errors import RunConflictError
from atoll.model.limits import Limits
from atoll.service.slots import Slots


class Count:
    """How many were inside at once, at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


def test_no_more_disks_at_once_than_each_limit_says(tmp_path: Path) -> None:
    limits = Limits(storage_disks=3, datastore_disks=2, proxy_disks=4)
    counts = {name: Count() for name in ("proxy", "pool", "gold", "silver", "iron")}
    where = [("pool", "gold"), ("pool", "silver"), (None, "iron")] * 6

    def copy(place: tuple[str | None, str]) -> None:
        storage, datastore = place
        with (
            Slots(tmp_path, limits).copying(storage, datastore, lambda _: None),
            counts["proxy"],
            counts[datastore],
            counts[storage] if storage else nullcontext(),
        ):
            threading.Event().wait(0.02)

    with ThreadPoolExecutor(len(where)) as pool:
        list(pool.map(copy, where))
    assert counts["gold"].most <= 2
    assert counts["silver"].most <= 2
    assert counts["pool"].most <= 3
    assert 2 <= counts["proxy"].most <= 4


def test_who_waits_says_for_what_once_and_keeps_nothing(tmp_path: Path) -> None:
    slots = Slots(tmp_path, Limits(storage_disks=1, datastore_disks=1, proxy_disks=9))
    told: list[str] = []
    waiting = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        waiting.set()

    def copy() -> None:
        with slots.copying("pool", "gold", tell):
            told.append("copied")

    with slots.copying("pool", "silver", told.append):
        thread = threading.Thread(target=copy)
        thread.start()
        assert waiting.wait(10)
        with slots.copying(None, "gold", told.append):
            told.append("another from gold")
    thread.join()
    assert told == [
        "waits for a turn, 1 at once from storage system pool ([limits] in the settings)",
        "another from gold",
        "copied",
    ]


def test_a_killed_process_has_no_slot(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from atoll.model.limits import Limits\n"
        "from atoll.service.slots import Slots\n"
        "with Slots(Path(sys.argv[1]), Limits(proxy_served=1)).serving():\n"
        "    print('served', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "served\n"
    slots = Slots(tmp_path, Limits(proxy_served=1))
    with pytest.raises(RunConflictError, match="is 1"), slots.serving():
        raise AssertionError("one too many")
    holder.kill()
    holder.wait()
    with slots.serving():
        pass
