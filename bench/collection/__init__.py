"""Benchmarks of what grows with the collection: listing, rows, reuse, labels."""
