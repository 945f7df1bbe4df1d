"""Key slots: the master key wrapped once for each passphrase, key file or recovery key."""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from atoll.model.errors import (
    ConfigurationError,
    RepositoryDamagedError,
    RepositoryKeyError,
    StorageConflictError,
)
from atoll.repository.keys import (
    Argon2Cost,
    KeyFile,
    KeySource,
    MasterKey,
    Passphrase,
    wrapping_key,
)
from atoll.repository.sealing import checked, halves, new_name, twice, unchecked
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

KEYS = "keys/"
LABEL_CHARACTERS = 100
_NEWEST = 2
_MAX_MEMORY_KIB = 4 << 20  # a forged slot must not make the reader allocate without limit
_MAX_PASSES = 1 << 10
_MAX_LANES = 1 << 8
_BOUND = {
    1: ("repository", "key", "kind", "salt", "memory_kib", "passes", "lanes"),
    2: (
        "repository",
        "key",
        "kind",
        "salt",
        "memory_kib",
        "passes",
        "lanes",
        "created_at",
        "label",  # last: nothing else may hold a `|`
    ),
}
"""What the seal of a slot of each version vouches for besides the key."""


@dataclass(frozen=True, slots=True)
class KeySlot:
    """A slot as people see it; `own` is the one that this process opened the repository with.

    `created_at` is None for slots of version 1, which do not tell. `kind` is `passphrase`, `file` or
    `recovery`, or `damaged` for one that is not as somebody with the key wrote it.
    """

    name: str
    kind: str
    label: str
    created_at: int | None
    own: bool


def make_slot(
    master: MasterKey, source: KeySource, repository: str, label: str, created_at: int
) -> bytes:
    """The line of a slot: the master key, sealed for who holds `source`.

    ConfigurationError for a label that is too long or does not print.
    """
    if len(label) > LABEL_CHARACTERS or not label.isprintable():
        raise ConfigurationError(
            f"A label has up to {LABEL_CHARACTERS} printable characters; choose another."
        )
    salt = secrets.token_bytes(16)
    cost = source.cost if isinstance(source, Passphrase) else Argon2Cost(0, 0, 0)
    slot: dict[str, Any] = {
        "version": _NEWEST,
        "repository": repository,
        "key": master.key_id,
        "kind": _kind(source),
        "salt": salt.hex(),
        "memory_kib": cost.memory_kib,
        "passes": cost.passes,
        "lanes": cost.lanes,
        "created_at": created_at,
        "label": label,
    }
    slot["wrapped"] = master.sealed(wrapping_key(source, salt, cost), _bound(slot)).hex()
    slot["tag"] = _tag(slot, master)
    return json.dumps(slot, sort_keys=True).encode()


def open_slot(source: KeySource, repository: str, line: bytes) -> MasterKey | None:
    """The master key of a slot's line, or None if the slot is for another key or repository.

    RepositoryDamagedError if it is no slot at all.
    """
    slot = _fields(line)
    try:
        if _version(slot) not in _BOUND:
            return None
        cost = Argon2Cost(int(slot["memory_kib"]), int(slot["passes"]), int(slot["lanes"]))
        salt, sealed = bytes.fromhex(slot["salt"]), bytes.fromhex(slot["wrapped"])
        bound = _bound(slot)
        if slot["repository"] != repository or slot["kind"] != _kind(source):
            return None
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryDamagedError(
            f"A key slot of the repository has no readable {error}; restore the `keys` folder "
            "from a copy."
        ) from error
    if isinstance(source, Passphrase) and not _possible(cost):
        return None
    return MasterKey.opened(wrapping_key(source, salt, cost), sealed, bound)


def repository_of(line: bytes) -> str:
    """The id of the repository that a slot's line is for; RepositoryDamagedError if it is no slot."""
    return str(_fields(line).get("repository", ""))


def slot_lines(store: ObjectStore) -> Iterator[tuple[str, bytes | None]]:
    """Name and line of each slot in the store; None where both copies are damaged."""
    for info in sorted(own_objects(store, KEYS), key=lambda info: info.name):
        try:
            copies = halves(store.get(info.name))
        except MissingObjectError:
            continue  # removed since it was listed
        line = None
        for copy in copies:
            try:
                line = unchecked(copy)
                break
            except RepositoryDamagedError:
                continue
        yield info.name.removeprefix(KEYS), line


def put_slot(
    store: ObjectStore, master: MasterKey, source: KeySource, repository: str, label: str
) -> str:
    """A new slot in the store; its name."""
    name = new_name()
    line = make_slot(master, source, repository, label, int(time.time()))
    store.put(KEYS + name, [twice(checked(line))])
    return name


class Keyring:
    """The slots of an open repository."""

    def __init__(self, store: ObjectStore, master: MasterKey, repository: str, own: str) -> None:
        self._store = store
        self._master = master
        self._repository = repository
        self._own = own

    def slots(self) -> list[KeySlot]:
        """All slots of this repository, oldest first."""
        found = [self._seen(name, line) for name, line in slot_lines(self._store)]
        return sorted(
            (slot for slot in found if slot is not None),
            key=lambda slot: (slot.created_at or 0, slot.name),
        )

    def add(self, source: KeySource, label: str = "") -> KeySlot:
        """Let `source` open the repository too; StorageConflictError if it does already."""
        for name, line in slot_lines(self._store):
            if line is not None and self._opens(source, line):
                raise StorageConflictError(
                    f"That key opens the repository already, by slot {name[:8]}; nothing was added."
                )
        name = put_slot(self._store, self._master, source, self._repository, label)
        return next(slot for slot in self.slots() if slot.name == name)

    def remove(self, reference: str, *, even_own: bool = False) -> KeySlot:
        """Remove the slot whose name begins so: what it was made for opens nothing any more.

        RepositoryKeyError if none or several begin so; StorageConflictError for the last one that
        is whole, and for the one in use unless `even_own`.
        """
        lock = self._store.maintain()  # or two that remove at once would leave none
        try:
            slots = self.slots()
            found = [slot for slot in slots if reference and slot.name.startswith(reference)]
            if len(found) != 1:
                raise RepositoryKeyError(
                    f"{len(found)} key slots begin with {reference!r}; `atoll repo key list` shows "
                    "all."
                )
            [slot] = found
            if all(other.kind == "damaged" for other in slots if other != slot):
                raise StorageConflictError(
                    f"Slot {slot.name[:8]} is the last, and without it nothing opens the repository; "
                    "add another key first."
                )
            if slot.own and not even_own:
                raise StorageConflictError(
                    f"Slot {slot.name[:8]} is of the key that the settings name; name another there "
                    "first, or give --even-own."
                )
            self._store.settle(KEYS)  # the others may be of somebody who was killed in the middle
            self._store.delete(KEYS + slot.name)
        finally:
            lock.release()
        return slot

    def _opens(self, source: KeySource, line: bytes) -> bool:
        try:
            return open_slot(source, self._repository, line) is not None
        except RepositoryDamagedError:
            return False

    def _seen(self, name: str, line: bytes | None) -> KeySlot | None:
        own = name == self._own
        if line is None:
            return KeySlot(name, "damaged", "", None, own)
        try:
            slot = _fields(line)
            if (slot["repository"], slot["key"]) != (self._repository, self._master.key_id):
                return None
            if not genuine(line, self._master):
                return KeySlot(name, "damaged", "", None, own)
            since = slot.get("created_at")
            return KeySlot(
                name,
                str(slot["kind"]),
                str(slot.get("label", "")),
                None if since is None else int(since),
                own,
            )
        except (RepositoryDamagedError, KeyError, TypeError, ValueError):
            return KeySlot(name, "damaged", "", None, own)


def genuine(line: bytes, master: MasterKey) -> bool:
    """Whether somebody with the master key wrote the slot, or it is for another key.

    A creation that was killed leaves one of those. Slots of version 1 do not tell.
    """
    try:
        slot = _fields(line)
        if slot["key"] != master.key_id or _version(slot) == 1:
            return True
        return bool(slot["tag"] == _tag(slot, master))
    except (RepositoryDamagedError, KeyError, TypeError, ValueError):
        return False


def _possible(cost: Argon2Cost) -> bool:
    return (
        1 <= cost.lanes <= _MAX_LANES
        and 1 <= cost.passes <= _MAX_PASSES
        and 8 * cost.lanes <= cost.memory_kib <= _MAX_MEMORY_KIB
    )


def _tag(slot: dict[str, Any], master: MasterKey) -> str:
    """So that who has the store only cannot change a label, or add a slot that opens nothing."""
    text = _bound(slot) + b"|" + str(slot["wrapped"]).encode()
    return blake3(text, key=master.derive("key slot")).hexdigest()


def _kind(source: KeySource) -> str:
    if isinstance(source, Passphrase):
        return "passphrase"
    return "file" if isinstance(source, KeyFile) else "recovery"


def _fields(line: bytes) -> dict[str, Any]:
    try:
        slot = json.loads(line)
    except ValueError:
        slot = None
    if not isinstance(slot, dict):
        raise RepositoryDamagedError(
            "A key slot of the repository is no JSON object; restore the `keys` folder from a copy."
        )
    return slot


def _version(slot: dict[str, Any]) -> int:
    return int(slot.get("version", 1))


def _bound(slot: dict[str, Any]) -> bytes:
    version = _version(slot)
    if version == 2 and type(slot["created_at"]) is not int:
        raise TypeError("created_at")  # a text could take a part of the label
    values = (str(slot[name]) for name in _BOUND[version])
    return "|".join([f"atoll key slot v{version}", *values]).encode()
