"""Guests that really boot: their disks, their QEMU processes, a way in, and load."""
