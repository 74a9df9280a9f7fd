"""The second half of `verify`: trains the same transformer on the same text in both frameworks."""
