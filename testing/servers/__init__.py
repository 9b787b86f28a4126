"""Servers for the demo, the tests and the benchmarks, in processes of their own."""
