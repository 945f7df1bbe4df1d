"""Keeping account of what a restore could not bring back as it was."""

_MAX_NOTES = 1000


class Losses:
    """`missing` counts the entries that are not there, or not with their content."""

    def __init__(self) -> None:
        self.missing = 0
        self._notes: list[str] = []
        self._more_notes = 0
        self._seen_notes: set[str] = set()

    @property
    def not_kept(self) -> list[str]:
        """One sentence for each thing that is not as it was in the guest."""
        more = [f"… and {self._more_notes} more"] if self._more_notes else []
        return self._notes + more

    def note(self, text: str, once: bool = False) -> None:
        """Say something that is not as it was in the guest."""
        if once:
            if text in self._seen_notes:
                return
            self._seen_notes.add(text)
        if len(self._notes) < _MAX_NOTES:
            self._notes.append(text)
        else:
            self._more_notes += 1

    def lose(self, text: str) -> None:
        """Say that an entry is missing, or its content."""
        self.missing += 1
        self.note(text)
