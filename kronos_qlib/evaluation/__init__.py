"""Scores, significance, drift: pure functions."""
