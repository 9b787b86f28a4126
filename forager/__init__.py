"""The Forager server as a client sees it: its calls, and what its answers mean."""
