"""LUN bytes to VMFS to VMDK to partitions: extent maps, changed extents, readers."""
