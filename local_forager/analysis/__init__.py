"""What the page computes from an index: maps, duplicates, searches by text or picture, health checks."""
