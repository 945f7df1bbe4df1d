"""Disks served over NBD."""
