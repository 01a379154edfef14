"""Candlesticks before any model: contract, repairs, calendars, windows, Qlib store, synthetic market."""
