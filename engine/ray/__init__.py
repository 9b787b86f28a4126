"""The same pipeline in actors of a Ray cluster: the driver, a worker, the cluster itself."""
