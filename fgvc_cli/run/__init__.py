"""A run in parts: committed, resumed, retried, merged."""
