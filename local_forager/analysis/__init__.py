"""What the page computes from an index: maps, neighbours, text search, health checks."""
