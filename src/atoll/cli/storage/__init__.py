"""`atoll storage`: pools, LUNs and LUN groups, who sees them, and their snapshots."""

from atoll.cli.storage.commands import app

__all__ = ["app"]
