"""The engines on one machine: all in one process, or with feeders, which feed a GPU."""
