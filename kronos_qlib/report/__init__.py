"""A run as one page: frames in, tables and pictures out, joined as HTML. Pure functions."""
