"""The same path on a Ray cluster: the driver, its workers, the cluster itself."""
