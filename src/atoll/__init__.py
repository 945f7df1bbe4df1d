"""Atoll: backup for VMware farms from storage snapshots."""

__version__ = "0.1.0"
