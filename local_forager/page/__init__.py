"""The JSON API behind the web page."""
