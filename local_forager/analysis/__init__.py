"""What the page computes from an index: maps, duplicates, searches, health checks."""
