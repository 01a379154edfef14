"""Scores, significance, attribution, calibration, controls, drift: pure functions, one kind a module."""
