"""The way of a label from the label file to the server."""
