"""The ways to compute a step."""
