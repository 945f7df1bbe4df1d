"""Waiting for what a watch tells."""

from atoll.model.changes import ChangeKind, InventoryChange
from atoll.vsphere.watch import Watch

PATIENCE_SECONDS = 120


def expect(watch: Watch, kind: ChangeKind, subject: str = "", since: int = 0) -> InventoryChange:
    """The first change of this kind to this subject after change number `since`, waited for."""
    heard_of = []
    while True:
        heard = watch.wait_for_change(since, PATIENCE_SECONDS)
        assert heard.changes, f"{kind} of {subject} was never told, only {heard_of}"
        for change in heard.changes:
            if (change.kind, change.subject) == (kind, subject):
                return change
        heard_of += [(change.kind, change.subject) for change in heard.changes]
        since = heard.latest


def told(watch: Watch, since: int = 0) -> set[tuple[ChangeKind, str]]:
    """Kinds and subjects of everything told after change number `since`, not waiting."""
    return {(change.kind, change.subject) for change in watch.wait_for_change(since).changes}
