"""The weights of both models as files: find, check and read them, without torch."""
