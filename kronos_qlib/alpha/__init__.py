"""Paths to scores (signals) and columns (factors): pure functions, registered by name."""
