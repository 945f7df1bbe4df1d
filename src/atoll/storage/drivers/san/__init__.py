"""The Linux SAN driver: dm-thin volumes in an LVM pool, served by LIO over iSCSI and Fibre Channel.

`driver` is what Atoll loads. `helper` runs on the SAN server under the distribution's own Python,
so nothing here may import more than the standard library.
"""
