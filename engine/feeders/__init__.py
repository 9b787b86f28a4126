"""The same path with fetching and decoding in processes, to feed a GPU."""
