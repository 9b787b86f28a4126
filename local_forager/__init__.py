"""A small Forager server on this machine: to try an ingest without a Forager, and for tests.

It answers the calls of an ingest as real servers of both generations were observed to, and shows
the datasets on a web page. It keeps datasets and labels in SQLite and lists the images in the
bucket itself. It does not replace Forager: it has no users, no labelling and no training.

    python -m local_forager --port 8000 --data_dir forager-data
"""
