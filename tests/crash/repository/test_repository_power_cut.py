"""Power fails after any system call of the directory store, and what had returned is there, whole."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from atoll.model.errors import AtollError, RepositoryUnreachableError
from atoll.model.extents import Extent
from atoll.model.points import Evidence
from atoll.repository import local
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from crashing_directory import CrashingDirectory, Killed, NameChange, Note, Tree, put_tree
from repository_parts import CHUNK, MemoryDisk, image, noise, point

PACK = 8 * CHUNK
FULL = noise(1, 30 * CHUNK)
APP = noise(2, 6 * CHUNK)
NEWER = noise(3, 4 * CHUNK) + FULL[4 * CHUNK : 12 * CHUNK]
CONTENT = {"p1": FULL, "p1-app": APP, "p2": NEWER, "p3": NEWER, "late": NEWER + noise(4, CHUNK)}
SEEN = Evidence(1.0, True, 1.0, "ok")


def _open(place: Path, key: KeyFile) -> Repository:
    return Repository(LocalStore.open(place), key, pack_bytes=PACK)


def _first(place: Path, key: KeyFile) -> None:
    with _open(place, key) as repository:
        disk = repository.copy_disk(MemoryDisk(FULL))
        app = repository.copy_disk(MemoryDisk(APP))
        blob = repository.put_blob(b"map" * 1000)
        repository.commit(
            [point("p1", image(disk, blob), at=1.0), point("p1-app", image(app), at=1.0)]
        )


def _increment(place: Path, key: KeyFile) -> None:
    with _open(place, key) as repository:
        parent = repository.find("p1").disks[0]
        changed = [Extent(0, 4 * CHUNK)]
        disk = repository.copy_disk(MemoryDisk(NEWER), extents=changed, parent=parent)
        repository.commit([point("p2", image(disk), at=2.0)])


def _the_same_again(place: Path, key: KeyFile) -> None:
    """No pack, no segment: only a points object is written."""
    with _open(place, key) as repository:
        disk = repository.copy_disk(MemoryDisk(NEWER))
        repository.commit([point("p3", image(disk), at=3.0)])


_p3 = _the_same_again


def _evidence(place: Path, key: KeyFile) -> None:
    with _open(place, key) as repository:
        repository.add_evidence("p3", SEEN)
        repository.add_evidence("p1", SEEN)


def _read(place: Path, key: KeyFile) -> None:
    with _open(place, key) as repository:
        readers = [repository.open_disk(repository.find(which).disks[0]) for which in ("p2", "p3")]
        for reader in readers:
            assert reader.read(0, reader.size_bytes) == NEWER
            reader.close()


def _lose_the_index(place: Path, _: KeyFile) -> None:
    store = LocalStore.open(place)
    for info in list(store.list("index/")):
        store.delete(info.name)


def _rebuild(place: Path, key: KeyFile) -> None:
    with _open(place, key) as repository:
        assert repository.rebuild_index()


def _forget(*points: str) -> Callable[[Path, KeyFile], None]:
    def forget(place: Path, key: KeyFile) -> None:
        with _open(place, key) as repository:
            repository.forget(set(points))

    return forget


def _prune(place: Path, key: KeyFile) -> None:
    with _open(place, key) as repository:
        repository.prune()


@dataclass(frozen=True)
class Step:
    """A piece of work, the points it commits and those it forgets."""

    work: Callable[[Path, KeyFile], object]
    adds: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()
    index_is_whole: bool = True


def _step(
    work: Callable[[Path, KeyFile], object], adds: str = "", removes: str = "", whole: bool = True
) -> Step:
    return Step(work, frozenset(adds.split()), frozenset(removes.split()), whole)


STEPS = (
    _step(lambda place, key: Repository.create(place, key, chunk_bytes=CHUNK).close()),
    _step(_first, "p1 p1-app"),
    _step(_increment, "p2"),
    _step(_the_same_again, "p3"),
    _step(_evidence),
    _step(_forget("p1"), removes="p1"),
    _step(_prune),
    _step(_read),
    _step(_lose_the_index, whole=False),
    _step(_rebuild, whole=False),
    _step(_forget("p3"), removes="p3"),
    _step(_prune),
)


@dataclass(frozen=True)
class Expected:
    """What must be there, and what may be: the added all together, the removed one by one."""

    made: bool = True
    must: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    index_is_whole: bool = True

    def allows(self, found: frozenset[str]) -> bool:
        beside = found - self.must
        return self.must <= found and (beside - self.removed) in (frozenset(), self.added)


def _expected(done: int, under_way: bool) -> Expected:
    """After so many steps, and perhaps in the middle of the next."""
    there: frozenset[str] = frozenset()
    for step in STEPS[:done]:
        there = (there | step.adds) - step.removes
    if not under_way:
        return Expected(done > 0, there, index_is_whole=done not in (9,))
    step = STEPS[done]
    return Expected(
        done > 0, there - step.removes, step.adds, there & step.removes, step.index_is_whole
    )


def _check(place: Path, key: KeyFile, expected: Expected) -> frozenset[str]:
    """What must be there is, whole; the next backup, prune and verify work; space comes back."""
    try:
        repository = _open(place, key)
    except RepositoryUnreachableError:
        assert not expected.made
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        repository = _open(place, key)
    with repository:
        points = frozenset(made.id for made in repository.points())
        assert repository.lost_points == ()
        assert expected.allows(points), (sorted(points), expected)
        if not expected.index_is_whole:
            repository.rebuild_index()
        _whole(repository, points)
        late = image(repository.copy_disk(MemoryDisk(CONTENT["late"])))
        repository.commit([point("late", late, at=9.0)])
        repository.prune()
        _whole(repository, points | {"late"})
        repository.forget(points | {"late"})
        repository.prune()
    left = {path.relative_to(place).parts[0] for path in place.rglob("*") if path.is_file()}
    assert left == {"config", "keys", "lock"}
    return points


def _whole(repository: Repository, points: frozenset[str]) -> None:
    assert repository.verify().damaged == ()
    found = {made.id: made for made in repository.points()}
    assert found.keys() == points
    for name, made in found.items():
        reader = repository.open_disk(made.disks[0])
        assert reader.read(0, reader.size_bytes + 1) == CONTENT[name]
        reader.close()
        assert repository.evidence(name) in ([], [SEEN])
        if made.disks[0].extent_map:
            assert repository.get_blob(made.disks[0].extent_map) == b"map" * 1000


@dataclass
class Story:
    """The steps, recorded."""

    top: Path
    key: KeyFile
    system: CrashingDirectory
    tried: int = 0
    outcomes: set[tuple[int, frozenset[str]]] = field(default_factory=set)

    @property
    def place(self) -> Path:
        return self.top / "repository"

    @contextmanager
    def recording(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "os", self.system)
            yield

    def tell(self, steps: range) -> None:
        for number in steps:
            self.system.note(f"begin {number}")
            STEPS[number].work(self.place, self.key)
            self.system.note(f"end {number}")

    def expected_after(self, cut: int) -> tuple[int, Expected]:
        done, under_way = 0, False
        for event in self.system.events[:cut]:
            if isinstance(event, Note):
                word, _, number = event.text.partition(" ")
                under_way = word == "begin"
                done = int(number) + (not under_way)
        return done, _expected(done, under_way)

    def check(self, states: Iterator[tuple[int, Tree]]) -> None:
        for cut, tree in states:
            done, expected = self.expected_after(cut)
            found = self.check_state(tree, expected, f"after {cut} events, in step {done}")
            self.outcomes.add((done, found))

    def check_state(self, tree: Tree, expected: Expected, when: str) -> frozenset[str]:
        self.tried += 1
        place = self.top.parent / f"cut{self.tried}"
        put_tree(tree, place)
        try:
            return _check(place / "repository", self.key, expected)
        except (AtollError, AssertionError) as error:
            raise AssertionError(f"{when}: {error}") from error
        finally:
            shutil.rmtree(place)


@pytest.fixture
def story(key: KeyFile) -> Iterator[Story]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:  # many fsyncs, and none is needed
        top = Path(memory) / "recorded"
        top.mkdir()
        yield Story(top, key, CrashingDirectory(top))


@pytest.fixture
def told(story: Story) -> Story:
    with story.recording():
        story.tell(range(len(STEPS)))
    return story


def test_power_fails_after_any_call(told: Story) -> None:
    chance = random.Random(5)
    cuts = sorted(chance.sample(range(len(told.system.events) + 1), 40))
    told.check(told.system.states(7, 1, cuts))
    assert told.tried > 80


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_power_fails_after_every_call(told: Story, seed: int) -> None:
    told.check(told.system.states(seed, 12))
    assert {done for done, _ in told.outcomes} == set(range(len(STEPS) + 1))
    # Each commit was seen as made and as not made.
    for number, step in enumerate(STEPS):
        if step.adds:
            seen = {bool(found & step.adds) for done, found in told.outcomes if done == number}
            assert seen == {False, True}, number


def _first_and_second(place: Path, key: KeyFile) -> None:
    for step in STEPS[:3]:
        step.work(place, key)


def _wasteful(place: Path, key: KeyFile) -> None:
    for step in STEPS[:6]:
        step.work(place, key)


def _rebuild_and_write(place: Path, key: KeyFile) -> None:
    with _open(place, key) as repository:
        repository.rebuild_index()
    _the_same_again(place, key)


Work = Callable[[Path, KeyFile], object]
KILLED_AND_NEXT: dict[str, tuple[Work, Work, Work, set[str]]] = {
    "a writer, the same writer": (STEPS[0].work, _first, _first, {"p1", "p1-app"}),
    "a writer, one that rebuilds": (STEPS[0].work, _p3, _rebuild_and_write, {"p3"}),
    "a prune, another": (_wasteful, _prune, _prune, {"p1-app", "p2", "p3"}),
    "a forget, another": (_first_and_second, _forget("p1"), _forget("p1"), {"p1-app", "p2"}),
    "a forget, a prune": (_first_and_second, _forget("p1"), _prune, {"p1-app", "p2"}),
}
"""What was there, who is killed, who comes next and returns, and the points there are then."""


@contextmanager
def _fresh(key: KeyFile) -> Iterator[Story]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        top = Path(memory) / "recorded"
        top.mkdir()
        yield Story(top, key, CrashingDirectory(top))


def _moments(key: KeyFile, who: str, *, every: bool) -> list[int]:
    """The changes that one makes who is not killed; else some before which others see in vain.

    That is, segments or points are there or gone, or the last pack is there, and not safely so.
    """
    before, killed, *_ = KILLED_AND_NEXT[who]
    with _fresh(key) as story, story.recording():
        before(story.place, key)
        start = story.system.changes
        killed(story.place, key)
        if every:
            return list(range(1, story.system.changes - start + 1))
        naming = [(at - start, folder) for at, folder in story.system.naming if at > start]
        last_pack = [at for at, folder in naming if folder == "packs"][-1:]
        return [at for at, folder in naming if folder in {"index", "points"}] + last_pack


@pytest.mark.parametrize("how", ["killed", "failed"])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.parametrize("who", KILLED_AND_NEXT)
def test_what_a_killed_process_left_half_done_is_not_relied_on(
    key: KeyFile, who: str, every: bool, how: str
) -> None:
    """Its last change may be seen by all and not be safe; then another commits; then power fails.

    A change that failed may be an fsync, of which the kernel tells once.
    """
    before, killed, following, points = KILLED_AND_NEXT[who]
    expected = Expected(
        must=frozenset(points), removed=frozenset({"p1"} if following is _prune else ())
    )
    struck = 0
    for at in _moments(key, who, every=every):
        with _fresh(key) as story:
            with story.recording():
                before(story.place, key)
                if how == "killed":
                    story.system.kill_at = story.system.changes + at
                else:
                    story.system.fail_at = story.system.changes + at
                try:
                    killed(story.place, key)
                except Killed:
                    story.system.bury()
                    struck += 1
                except AtollError as error:
                    assert "Input/output error" in str(error)
                    struck += 1
                following(story.place, key)
            samples = 8 if every else 1
            for _, tree in story.system.states(at, samples, [len(story.system.events)]):
                story.check_state(tree, expected, f"killed at change {at}")
    assert struck > 0


def test_who_goes_on_with_a_forget_has_what_stays_safe_before_the_rest_goes(key: KeyFile) -> None:
    """Power fails while it goes on: the points object that was put anew is of one who was killed."""
    expected = Expected(must=frozenset({"p1-app", "p2"}), removed=frozenset({"p1"}))
    for at in _moments(key, "a forget, another", every=False):
        with _fresh(key) as story:
            with story.recording():
                _first_and_second(story.place, key)
                story.system.kill_at = story.system.changes + at
                with pytest.raises(Killed):
                    _forget("p1")(story.place, key)
                story.system.bury()
                begun = len(story.system.events)
                _forget("p1")(story.place, key)
            gone = [
                number
                for number, event in enumerate(story.system.events, 1)
                if number > begun and isinstance(event, NameChange) and event.node is None
            ]
            assert gone
            for cut, tree in story.system.states(at, 1, gone):
                story.check_state(tree, expected, f"killed at change {at}, cut after {cut} events")
