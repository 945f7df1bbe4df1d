"""A key file and a small repository in a temporary directory."""

from pathlib import Path

import pytest

from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.repository import Repository
from repository_parts import CHUNK


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return create_key_file(tmp_path / "key")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def repository(place: Path, key: KeyFile) -> Repository:
    return Repository.create(place, key, chunk_bytes=CHUNK)
