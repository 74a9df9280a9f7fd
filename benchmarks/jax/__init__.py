"""The run in JAX."""
