"""Settings of the whole suite."""

from hypothesis import settings

# Every case replays: the default draws the same examples each time and prints what reproduces a failure.
# `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("replay", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=300)
settings.load_profile("replay")
