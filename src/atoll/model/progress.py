"""How long work tells whoever watches where it is."""

from typing import Protocol


class Progress(Protocol):
    """Receives stage changes and byte counts. Must be quick; may be called from any thread."""

    def stage(self, vm: str, stage: str, total_bytes: int = 0) -> None:
        """`vm` (empty for the whole group) enters `stage`; `total_bytes` if it moves bytes."""
        ...

    def advance(self, vm: str, done_bytes: int) -> None:
        """`done_bytes` more of the stage's total are done."""
        ...

    def note(self, vm: str, text: str) -> None:
        """A fact worth a line."""
        ...


class Silent:
    """A Progress that tells nobody."""

    def stage(self, vm: str, stage: str, total_bytes: int = 0) -> None:
        """Ignore."""

    def advance(self, vm: str, done_bytes: int) -> None:
        """Ignore."""

    def note(self, vm: str, text: str) -> None:
        """Ignore."""
