"""Indexes on this machine: copied from the bucket, checked and read."""
