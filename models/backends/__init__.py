"""The implementations of both models that --backend chooses from."""
