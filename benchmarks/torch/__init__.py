"""The runs in torch: on one process (`run.py`), and on several that share every parameter (`sharded.py`)."""
