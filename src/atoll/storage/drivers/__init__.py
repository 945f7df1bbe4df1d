"""Storage systems Atoll can drive, by the name the settings use: a new one adds a line.

A driver is a module with `Settings`, `state_directory`, `create` and `open_backend`
(docs/drivers/checklist.md).
"""

DRIVERS = {
    "ceph": "atoll.storage.drivers.ceph.driver",
    "cinder": "atoll.storage.drivers.cinder.driver",
    "embedded": "atoll.storage.drivers.embedded",
    "ontap": "atoll.storage.drivers.ontap",
    "pure": "atoll.storage.drivers.pure",
    "san": "atoll.storage.drivers.san.driver",
}
