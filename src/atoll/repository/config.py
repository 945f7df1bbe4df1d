"""The repository's settings object: what was fixed when it was made."""

import json
import secrets
from dataclasses import dataclass

from blake3 import blake3

from atoll.model.errors import (
    ConfigurationError,
    RepositoryDamagedError,
    RepositoryKeyError,
    RepositoryUnreachableError,
    UnsupportedFormatError,
)
from atoll.repository.keys import KeySource, MasterKey
from atoll.repository.sealing import checked, halves, twice, unchecked
from atoll.repository.slots import KEYS, genuine, open_slot, put_slot, slot_lines
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

CONFIG = "config"
FORMAT, VERSION = "atoll-repository", 1
DEFAULT_CHUNK_BYTES = 256 << 10
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 4 << 10, 16 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """`id` is 32 random hex digits, `key_id` names the master key, sizes are bytes."""

    id: str
    key_id: str
    chunk_bytes: int


def create_config(
    store: ObjectStore, source: KeySource, chunk_bytes: int, label: str = ""
) -> MasterKey:
    """Make a new repository of an empty store; the settings object, written last, makes it one."""
    if (
        not _MIN_CHUNK_BYTES <= chunk_bytes <= _MAX_CHUNK_BYTES
        or chunk_bytes & (chunk_bytes - 1) != 0
    ):
        raise ConfigurationError(
            f"A chunk of {chunk_bytes} bytes is not possible; choose a power of two from 4 KiB "
            "to 16 MiB."
        )
    master = MasterKey.generate()
    config = Config(secrets.token_hex(16), master.key_id, chunk_bytes)
    put_slot(store, master, source, config.id, label)
    store.put(CONFIG, [twice(_encode(config, master))])
    return master


def open_config(store: ObjectStore, source: KeySource) -> tuple[Config, MasterKey, str]:
    """Read the settings and unlock the master key; the name of the slot that did it comes third.

    RepositoryUnreachableError if there is no repository, RepositoryKeyError if
    `source` opens no slot, RepositoryDamagedError if both copies are broken.
    """
    try:
        block, config = read_config(store)
    except MissingObjectError as error:
        raise _no_config(store) from error
    master, slot = _unlocked(store, source, config)
    if not authentic(block, master):
        raise RepositoryDamagedError(
            f"The settings of the repository {store.location} were altered without its key; "
            "restore the object `config` from a copy."
        )
    return config, master, slot


def read_config(store: ObjectStore) -> tuple[bytes, Config]:
    """A whole copy of the settings and what it says, whoever wrote it, for that takes the key to tell.

    MissingObjectError if there is none, RepositoryDamagedError if both copies are broken.
    """
    block = _good_copy(halves(store.get(CONFIG)), CONFIG)
    return block, _decode(block)


def damaged_copies(store: ObjectStore, master: MasterKey) -> list[tuple[str, str]]:
    """(object, what is wrong) for each copy of settings or key slot that is not as written."""
    found = []
    for number, copy in enumerate(halves(store.get(CONFIG)), 1):
        if not authentic(copy, master):
            found.append((CONFIG, f"copy {number} of 2 is not what was written"))
    for info in own_objects(store, KEYS):
        for number, copy in enumerate(halves(store.get(info.name)), 1):
            try:
                whole = genuine(unchecked(copy), master)
            except RepositoryDamagedError:
                whole = False
            if not whole:
                found.append((info.name, f"copy {number} of 2 is not what was written"))
    return found


def _encode(config: Config, master: MasterKey) -> bytes:
    line = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "id": config.id,
            "key": config.key_id,
            "chunk_bytes": config.chunk_bytes,
        },
        sort_keys=True,
    ).encode()
    return checked(line + b"|" + _tag(line, master))


def _tag(line: bytes, master: MasterKey) -> bytes:
    return blake3(line, key=master.derive("config")).hexdigest().encode()


def authentic(block: bytes, master: MasterKey) -> bool:
    """Whether a copy of the settings is as the holder of the key wrote it."""
    try:
        line, _, tag = unchecked(block).rpartition(b"|")
    except RepositoryDamagedError:
        return False
    return tag == _tag(line, master)


def _decode(block: bytes) -> Config:
    line, _, _ = unchecked(block).rpartition(b"|")
    fields = json.loads(line)
    if fields.get("format") != FORMAT or fields.get("version") != VERSION:
        raise UnsupportedFormatError(
            f"The repository has format {fields.get('format')} {fields.get('version')}, and this "
            f"Atoll reads {FORMAT} {VERSION}; use a newer Atoll."
        )
    return Config(fields["id"], fields["key"], fields["chunk_bytes"])


def _unlocked(store: ObjectStore, source: KeySource, config: Config) -> tuple[MasterKey, str]:
    slots, broken = 0, 0
    for name, line in slot_lines(store):
        slots += 1
        if line is None:
            broken += 1
            continue
        master = open_slot(source, config.id, line)
        if master is not None and master.key_id == config.key_id:
            return master, name
    if broken or not slots:
        raise RepositoryDamagedError(
            f"{broken or 'All'} key slots of the repository {store.location} are damaged or gone "
            "and the key given opens no other; restore the `keys` folder from a copy."
        )
    raise RepositoryKeyError(
        f"The key given does not open the repository {store.location}, whose key is "
        f"{config.key_id}; name a key file, passphrase or recovery key that was made for it."
    )


def _good_copy(copies: tuple[bytes, bytes], name: str) -> bytes:
    for copy in copies:
        try:
            unchecked(copy)
        except RepositoryDamagedError:
            continue
        return copy
    raise RepositoryDamagedError(
        f"Both copies of {name} are damaged, and without it the repository cannot be opened; "
        "restore that object from a copy of the repository."
    )


def _no_config(store: ObjectStore) -> RepositoryDamagedError | RepositoryUnreachableError:
    if any(True for _ in own_objects(store, "packs/")):
        return RepositoryDamagedError(
            f"The repository {store.location} has lost its object `config`; restore it from a copy."
        )
    return RepositoryUnreachableError(
        f"There is no repository at {store.location}; make one with `atoll repo init`, or make "
        "its file system reachable."
    )
