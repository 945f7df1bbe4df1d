"""Guest file systems: entries and content, parsed in a sandboxed process."""
