"""Kronos, the foundation model of candlesticks, as a Qlib citizen."""

__version__ = "0.1.0"
