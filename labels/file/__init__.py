"""Reads label files in several formats; all formats share the checks."""
