"""What the page computes from an index: neighbours, maps, text search, health checks."""
