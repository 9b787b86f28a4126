"""The client of the Forager server: its address, its calls, and what its answers mean."""
