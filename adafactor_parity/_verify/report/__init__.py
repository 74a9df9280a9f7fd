"""The report of `verify`: tables on the terminal, plots, a page and a JSON file."""
