"""The embedded engine: btrfs keeps the LUNs and their snapshots, tgt serves them over iSCSI."""

from atoll.storage.drivers.embedded.engine import EmbeddedEngine
from atoll.storage.drivers.embedded.pool import create_pool

__all__ = ["EmbeddedEngine", "create_pool"]
