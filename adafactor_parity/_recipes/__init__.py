"""`adafactor recipes`: shows the named recipes, and the differences between two of them."""
