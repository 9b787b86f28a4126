"""The steps of an ingest after its plan: copy what is computed, embed, verify, upload, register."""
