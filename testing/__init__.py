"""Real parts and stand-ins that the demo, the benchmarks and the tests share."""
