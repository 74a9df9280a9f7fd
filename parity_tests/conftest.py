"""Settings of the whole suite."""

import gc
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path

import jax
import pytest
import torch
from hypothesis import settings
from torch.distributed.device_mesh import DeviceMesh

from .profiles import cover, draws_many, rotated
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

# Compiled JAX programs lie in a folder of this run: the workers share them, and so do the tests that compile the same.
# Whoever names the folder in the environment keeps them for the next run.
_CACHE, _OWN_CACHE = "JAX_COMPILATION_CACHE_DIR", pytest.StashKey[str]()
# Beyond this, a worker drops after each file what JAX and torch have compiled in it: compiled programs are most of its
# memory, and JAX finds them again in the folder.
KEPT_BYTES = 2 << 30


# The files that take longest come first: at the end, both workers have short ones left and end together.
LONGEST = (
    "test_torch_triton.py",
    "test_recorded.py",
    "test_torch_sharded_triton.py",
    "test_faults.py",
    "test_nonfinite.py",
    "test_jax_split.py",
    "test_agreement.py",
    "test_public_names.py",
    "test_jax_shardings.py",
    "test_jax_contract.py",
    "test_jax_wrappers.py",
    "test_command_line.py",
    "test_torch_release.py",
    "test_jax_integrations.py",
    "test_tables.py",
    "test_examples.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="every combination, and many examples of every random test, 20,000 of the fuzz",
    )


def pytest_configure(config: pytest.Config) -> None:
    if _CACHE not in os.environ:
        os.environ[_CACHE] = config.stash[_OWN_CACHE] = tempfile.mkdtemp(prefix="adafactor-compiled-")
    jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if config.getoption("--thorough"):
        settings.load_profile("thorough")  # before the tests are imported, which read it then
    config.addinivalue_line(
        "markers",
        "sampled(count=2, together=None): run a sample of the test's combinations, see `profiles.cover`; of a single "
        "parameter `count` values, spread evenly; the others run under `--thorough` alone.",
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OWN_CACHE in config.stash:
        del os.environ[_CACHE]
        shutil.rmtree(config.stash[_OWN_CACHE], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests of a file in one worker, and leaves a sample of each test marked `sampled`.

    What a file imports, compiles and starts is then there once. Everything runs if many examples are asked for, or a
    single case by its name.
    """
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if draws_many() or any("[" in argument for argument in config.args):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    turns, left_out = Counter[str](), set[pytest.Item]()
    for test, cases in tests.items():
        combinations, file = [_values(case) for case in cases], test.partition("::")[0]
        options = next(cases[0].iter_markers("sampled")).kwargs
        if len(combinations[0]) == 1:
            chosen = rotated(options.get("count", 2), len(cases), turns[file])
            turns[file] += 1
        else:
            chosen = cover(combinations, options.get("together"))
        left_out |= {*cases} - {cases[place] for place in chosen}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _values(case: pytest.Item) -> dict[str, Hashable]:
    """The values of a test's parameters, or what stands for those that cannot be compared."""
    given = case.callspec.params  # type: ignore[attr-defined]
    return {
        name: (type(value).__name__, value if isinstance(value, str | int | float | None) else id(value))
        for name, value in given.items()
    }


@pytest.fixture(scope="module", autouse=True)
def _memory_of_other_files() -> Iterator[None]:
    """A file's tests do not pay for what others have left behind: the collector passes over it, or it is dropped."""
    gc.freeze()
    yield
    unit = 1 if sys.platform == "darwin" else 1024
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > KEPT_BYTES:
        gc.unfreeze()
        jax.clear_caches()
        torch.compiler.reset()
        gc.collect()


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes for the whole run: starting them takes longer than most of what they do."""
    with processes(tmp_path_factory.mktemp("four"), 4) as ranks:
        yield ranks


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone: parameters on it are DTensors."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()
