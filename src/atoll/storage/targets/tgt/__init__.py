"""tgt: an iSCSI target in user space, a tgtd for each LUN group."""

from atoll.storage.targets.tgt.daemon import BackingStore, Durability
from atoll.storage.targets.tgt.targets import TgtTargets

__all__ = ["BackingStore", "Durability", "TgtTargets"]
