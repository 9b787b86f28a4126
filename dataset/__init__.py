"""One ingest on disk: its work directory, embedding arrays, lists and manifest."""
