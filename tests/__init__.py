"""Tests in the folders of the program, and the harness that they share."""
