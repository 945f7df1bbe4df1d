"""Key slots: what opens them, what changes them, and the keyring of a repository."""

import json
from pathlib import Path
from typing import Any

import pytest
from stranger import Stranger

from atoll.model.errors import (
    ConfigurationError,
    RepositoryDamagedError,
    RepositoryKeyError,
    RunConflictError,
    StorageConflictError,
)
from atoll.repository.keys import (
    Argon2Cost,
    KeyFile,
    KeySource,
    MasterKey,
    Passphrase,
    RecoveryKey,
    create_key_file,
)
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from atoll.repository.sealing import checked, twice, unchecked
from atoll.repository.slots import genuine, make_slot, open_slot
from repository_parts import CHUNK, MemoryDisk, image, noise, point

CHEAP = Argon2Cost(memory_kib=64, passes=1, lanes=1)
GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "key-slots-v2.json").read_text()
)


def slot(source: KeySource | None = None, label: str = "") -> bytes:
    chosen = source or Passphrase("p", CHEAP)
    return make_slot(MasterKey(bytes(32)), chosen, "repo", label, 1_800_000_000)


def changed(line: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(line), **fields}).encode()


def golden_source(kind: str, tmp_path: Path) -> KeySource:
    if kind == "file":
        (tmp_path / "key").write_text(GOLDEN["file"])
        return KeyFile(tmp_path / "key")
    return Passphrase(GOLDEN[kind]) if kind == "passphrase" else RecoveryKey(GOLDEN[kind])


@pytest.mark.parametrize("kind", ["passphrase", "file", "recovery"])
def test_slots_of_version_2_stay_readable(kind: str, tmp_path: Path) -> None:
    source, line = golden_source(kind, tmp_path), GOLDEN["slots"][kind].encode()
    opened = open_slot(source, GOLDEN["repository"], line)
    assert opened is not None
    assert opened.key_id == GOLDEN["key"]
    assert genuine(line, opened)
    fields = json.loads(line)
    assert (fields["version"], fields["kind"]) == (2, kind)
    raw = Stranger.unwrap(
        fields,
        GOLDEN["passphrase"] if kind == "passphrase" else "",
        tmp_path / "key" if kind == "file" else None,
        GOLDEN["recovery"] if kind == "recovery" else "",
    )
    assert MasterKey(raw).key_id == GOLDEN["key"]


def test_a_passphrase_opens_what_it_was_made_for_and_another_does_not() -> None:
    line = slot(Passphrase("caf\u00e9 ole", CHEAP))
    again = open_slot(Passphrase("cafe\u0301 ole"), "repo", line)  # the other spelling
    assert again is not None
    assert again.key_id == MasterKey(bytes(32)).key_id
    assert open_slot(Passphrase("cafe ole"), "repo", line) is None
    assert open_slot(Passphrase("caf\u00e9 ole"), "other repo", line) is None


def test_a_kind_is_not_taken_for_another(tmp_path: Path) -> None:
    recovery = RecoveryKey.generate()
    (tmp_path / "key").write_text(f"atoll-key-1:{recovery.secret().hex()}\n")
    line = slot(recovery)
    assert open_slot(recovery, "repo", line) is not None
    assert open_slot(KeyFile(tmp_path / "key"), "repo", line) is None
    forged = changed(line, kind="file")
    assert open_slot(KeyFile(tmp_path / "key"), "repo", forged) is None


@pytest.mark.parametrize(
    "field",
    ["memory_kib", "passes", "lanes", "key", "salt", "created_at", "label", "version"],
)
def test_what_stands_beside_the_wrapped_key_is_sealed_too(field: str) -> None:
    line = slot(label="of the night job")
    true = json.loads(line)[field]
    other = changed(line, **{field: true + 1 if isinstance(true, int) else "00" * 16})
    assert open_slot(Passphrase("p"), "repo", line) is not None
    assert open_slot(Passphrase("p"), "repo", other) is None
    if field not in ("version", "key"):
        assert not genuine(other, MasterKey(bytes(32)))
    if field != "salt":
        # Neither does a slot of version 2 pass for one of version 1, without these fields.
        assert open_slot(Passphrase("p"), "repo", changed(line, version=1)) is None


def test_labels_cannot_be_moved_over_the_bounds_of_fields() -> None:
    line = slot(label="a|b")
    assert open_slot(Passphrase("p"), "repo", line) is not None
    moved = changed(line, created_at="1800000000|a", label="b")
    with pytest.raises(RepositoryDamagedError, match="created_at"):
        open_slot(Passphrase("p"), "repo", moved)


@pytest.mark.parametrize(
    "cost",
    [
        {"memory_kib": 1 << 40},
        {"passes": 1 << 20},
        {"lanes": 1 << 10},
        {"passes": 0},
        {"lanes": 0},
        {"memory_kib": 1},
    ],
)
def test_a_forged_cost_is_not_paid(cost: dict[str, int]) -> None:
    assert open_slot(Passphrase("p"), "repo", changed(slot(), **cost)) is None


@pytest.mark.parametrize("line", [b"{}", b"[]", b"no", b'{"version": "x"}'])
def test_a_slot_without_its_fields_is_damage(line: bytes) -> None:
    with pytest.raises(RepositoryDamagedError):
        open_slot(Passphrase("p"), "repo", line)
    assert not genuine(line, MasterKey(bytes(32)))


@pytest.mark.parametrize("label", ["x" * 101, "two\nlines", "\x1b[31m"])
def test_a_label_prints_in_a_line(label: str) -> None:
    with pytest.raises(ConfigurationError, match="label"):
        slot(label=label)


def test_keys_are_added_and_removed_without_writing_data_anew(
    repository: Repository, place: Path, key: KeyFile, tmp_path: Path
) -> None:
    data = noise(1, 3 * CHUNK)
    repository.commit([point("p1", image(repository.copy_disk(MemoryDisk(data))))])
    before = {path: path.read_bytes() for path in place.rglob("packs/*/*")}
    words, recovery = Passphrase("several good words", CHEAP), RecoveryKey.generate()
    other = create_key_file(tmp_path / "other")
    for source, label in ((words, "for people"), (recovery, "in the safe"), (other, "")):
        added = repository.keyring.add(source, label)
        assert (added.label, added.own) == (label, False)
        with Repository.open(place, source) as opened:
            assert opened.open_disk(opened.points()[0].disks[0]).read(0, len(data)) == data
            assert [each.kind for each in opened.keyring.slots() if each.own] == [added.kind]
    [own] = [each for each in repository.keyring.slots() if each.own]
    with Repository.open(place, other) as opened:
        opened.keyring.remove(own.name[:8])
    for source in (words, recovery, other):
        Repository.open(place, source).close()
    with pytest.raises(RepositoryKeyError):
        Repository.open(place, key)
    assert {path: path.read_bytes() for path in place.rglob("packs/*/*")} == before
    assert repository.verify().damaged == ()


def test_a_key_is_added_once(repository: Repository, key: KeyFile) -> None:
    with pytest.raises(StorageConflictError, match="already"):
        repository.keyring.add(key)
    assert len(repository.keyring.slots()) == 1


def test_the_last_slot_and_ones_own_stay(
    repository: Repository, place: Path, key: KeyFile, tmp_path: Path
) -> None:
    [own] = repository.keyring.slots()
    with pytest.raises(StorageConflictError, match="is the last"):
        repository.keyring.remove(own.name, even_own=True)
    other = create_key_file(tmp_path / "other")
    added = repository.keyring.add(other)
    with pytest.raises(StorageConflictError, match="--even-own"):
        repository.keyring.remove(own.name)
    for nothing in ("", "zz"):
        with pytest.raises(RepositoryKeyError, match="repo key list"):
            repository.keyring.remove(nothing)
    # A slot that opens nothing is no reason to let go of the last that does.
    path = place / "keys" / added.name
    path.write_bytes(b"x" * 100)
    assert {each.kind for each in repository.keyring.slots()} == {"file", "damaged"}
    with pytest.raises(StorageConflictError, match="is the last"):
        repository.keyring.remove(own.name, even_own=True)
    assert repository.keyring.remove(added.name).kind == "damaged"
    Repository.open(place, key).close()


def test_slots_that_somebody_without_the_key_made_or_changed_are_told(
    repository: Repository, place: Path, tmp_path: Path
) -> None:
    added = repository.keyring.add(create_key_file(tmp_path / "other"), "for the auditor")
    path = place / "keys" / added.name
    line = unchecked(path.read_bytes()[: path.stat().st_size // 2])
    path.write_bytes(twice(checked(changed(line, label="of the night job"))))
    [seen] = [each for each in repository.keyring.slots() if each.name == added.name]
    assert (seen.kind, seen.label) == ("damaged", "")
    assert {each.object for each in repository.verify().damaged} == {f"keys/{added.name}"}


def test_a_slot_that_a_killed_creation_left_is_no_damage(
    repository: Repository, place: Path
) -> None:
    left = make_slot(MasterKey.generate(), Passphrase("p", CHEAP), "00" * 16, "", 0)
    LocalStore.open(place).put(f"keys/{'ab' * 16}", [twice(checked(left))])
    assert len(repository.keyring.slots()) == 1
    assert repository.verify().damaged == ()


def test_no_key_is_removed_while_another_may_be(repository: Repository, place: Path) -> None:
    lock = LocalStore.open(place).maintain()
    with pytest.raises(RunConflictError):
        repository.keyring.remove("00")
    lock.release()
