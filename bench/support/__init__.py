"""What the benchmarks share: measuring, devices, and the original way to compute."""
