"""The weights of both models as files: found, checked and read without torch."""
