"""The HTTP API of a Forager server of either generation, over SQLite."""
