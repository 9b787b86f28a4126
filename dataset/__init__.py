"""One ingest on disk: work directory, rows in SQLite, embedding arrays, lists."""
