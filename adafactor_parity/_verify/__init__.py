"""`adafactor verify`: compares both optimizers with the NumPy oracle and with each other, and writes a report."""
