"""Dense models of the studies, in JAX."""
