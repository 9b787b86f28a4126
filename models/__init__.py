"""How the two models are computed: one module a backend, and what they are made of."""
