"""Labels: read a label file, check it, send its labels, record what the server stored."""
