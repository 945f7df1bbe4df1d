"""What opens the repository: keys added beside those there are."""

from pathlib import Path

from atoll.model.errors import ConfigurationError
from atoll.repository.keys import KeyFile, Passphrase, RecoveryKey, create_key_file
from atoll.repository.repository import Repository
from atoll.repository.slots import KeySlot

SHORTEST_PASSPHRASE = 12


def check_passphrase(text: str) -> str:
    """The same; ConfigurationError if it is so short that it would soon be guessed."""
    if len(text) < SHORTEST_PASSPHRASE:
        raise ConfigurationError(
            f"The passphrase has fewer than {SHORTEST_PASSPHRASE} characters and would be guessed; "
            "several words are good."
        )
    return text


def add_passphrase(repository: Repository, text: str, label: str) -> KeySlot:
    """Let a passphrase open the repository too."""
    return repository.keyring.add(Passphrase(check_passphrase(text)), label)


def add_key_file(repository: Repository, path: Path, label: str) -> tuple[KeySlot, bool]:
    """Let a key file open the repository too; also whether it was made, being absent."""
    made = not path.exists()
    key = create_key_file(path) if made else KeyFile(path)
    return repository.keyring.add(key, label), made


def add_recovery_key(repository: Repository, label: str) -> tuple[KeySlot, str]:
    """A new recovery key, and its text, which is kept nowhere."""
    key = RecoveryKey.generate()
    return repository.keyring.add(key, label), key.text
