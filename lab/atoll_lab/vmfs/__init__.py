"""VMFS 6 for the lab: formats LUN images and keeps virtual disks in them. Never for real datastores."""

from atoll_lab.vmfs.check import check
from atoll_lab.vmfs.format import format_volume
from atoll_lab.vmfs.volume import DiskExtent, Volume

__all__ = ["DiskExtent", "Volume", "check", "format_volume"]
