"""Storage systems Atoll can drive, by the name the settings use: a new one adds a line.

A driver is a module with `Settings`, `state_directory`, `create` and `open_backend`
(docs/drivers/checklist.md).
"""

DRIVERS = {
    "embedded": "atoll.storage.drivers.embedded",
}
