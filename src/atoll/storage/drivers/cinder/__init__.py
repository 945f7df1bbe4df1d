"""Arrays through OpenStack Cinder's drivers, which run in a sidecar with an environment of its own.

`helper` runs there and sees of Atoll only `model` and `sidecar`; so nothing is imported here.
"""
