"""Transfers to and from Google Cloud Storage: many small objects, a few large ones."""
