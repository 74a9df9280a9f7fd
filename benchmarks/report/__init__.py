"""Showing results: the tables on the terminal, the pages in docs/ and their plots."""
