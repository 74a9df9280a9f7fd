"""Settings of the whole suite."""

from collections.abc import Iterator

import jax
import pytest
import torch
from hypothesis import settings

from .two_processes import Ranks, processes

# Every case replays: the default draws the same examples each time and prints what reproduces a failure.
# `pytest --thorough` draws many more, also the same ones each time; `pytest --hypothesis-profile=explore` looks for new
# ones. A test whose number of examples is its own matter asks `profiles.examples` for it.
settings.register_profile("replay", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("thorough", derandomize=True, deadline=None, print_blob=True, max_examples=300)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=300)
settings.load_profile("replay")

# The tensors are tiny and the workers share the cores: waking further threads costs more than they do.
torch.set_num_threads(1)

# Tests of sharded runs need several devices, and only before the first use of JAX can they be asked for.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="many examples of every random test, 20,000 of the fuzz")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--thorough"):
        settings.load_profile("thorough")  # before the tests are imported, which read it then


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes for the whole run: starting them takes longer than most of what they do."""
    with processes(tmp_path_factory.mktemp("four"), 4) as ranks:
        yield ranks
