"""The commands beside the server: export, columns and delete."""
