"""Windows to tokens to weights."""
