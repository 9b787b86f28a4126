"""Benchmarks of the page of the local Forager."""
