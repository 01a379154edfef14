"""Windows to paths: batching, devices, seeds, and the KlinePaths object."""
