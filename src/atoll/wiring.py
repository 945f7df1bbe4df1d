"""Settings and the only place that picks drivers."""
