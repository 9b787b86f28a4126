"""Which images a view of the page shows, and in which order."""
