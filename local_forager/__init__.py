"""A small Forager server on this machine: to try an ingest without a Forager, and for its tests.

It answers the calls that an ingest makes as real servers of both generations were observed to, and
shows the datasets on a page at its address. It keeps datasets and labels in SQLite, lists the
images in the bucket itself, and is no replacement for Forager: no users, no labelling, no training.

    python -m local_forager --port 8000 --data_dir forager-data
"""
