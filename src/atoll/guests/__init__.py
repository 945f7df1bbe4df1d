"""The director's side of the agent channel: certificates and calls."""
