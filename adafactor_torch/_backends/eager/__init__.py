"""Eager torch in cache-sized passes."""
