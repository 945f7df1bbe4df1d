"""The agent on Windows: shadow copies by the system's own tools, and its service.

Not run against the product; docs/operations/windows.md.
"""
