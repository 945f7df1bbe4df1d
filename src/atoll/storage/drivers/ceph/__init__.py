"""Ceph RBD: LUNs are images of a pool, served over iSCSI by a tgtd on this machine.

`driver` is the driver's face; `helper` runs in the Python that librbd was built for, so nothing
here may import what only Atoll's own has.
"""
