"""What speaks librbd: run by the distribution's Python, asked by Atoll over a sidecar's socket."""
