"""What exports LUNs to initiators."""
