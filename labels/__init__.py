"""The label file, the requests made from it, the journal of what was sent, and the report."""
