"""The rows of an ingest in SQLite: listed, embedded, compared with other listings and indexes."""
