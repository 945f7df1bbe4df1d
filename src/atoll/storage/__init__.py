"""The storage server: LUNs, LUN groups, snapshots, presentation and changed extents."""
