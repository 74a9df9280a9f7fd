"""The eager backend: torch's own operators, on blocks that fit in a core's cache."""
