"""Holds that VMware Tools asks for: applications alone, while it freezes the file systems itself."""
