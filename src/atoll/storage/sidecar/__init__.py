"""A driver's other half in an interpreter of its own, for libraries that cannot be had in Atoll's.

Requests and replies are JSON, a line each, over a UNIX socket that is the sidecar's standard
input and output; bytes read from a volume follow their reply as they are.
"""
