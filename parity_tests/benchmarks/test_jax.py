"""The benchmarks of JAX measure what they say. How fast anything is, no test asks."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from adafactor_parity.errors import UsageError
from benchmarks import _cli
from benchmarks.jax.compiled import Compilations, allocated, counted, tree_bytes, without_cache
from benchmarks.jax.optimizers import BASELINE, ENTRIES
from benchmarks.measure import entries
from benchmarks.measure.options import FRAMEWORKS, Options
from benchmarks.measure.results import Case, Measured, Results
from benchmarks.report import page as pages
from benchmarks.report import table

PARAMETERS = 20 * 64 * 64  # of the workload small, made quick: 20 matrices of 64x64

# ------------------------------------------------------------------------------------------------- compiled steps


def test_what_is_compiled_inside_is_counted() -> None:
    found, jitted = Compilations(), jax.jit(lambda x: jnp.sin(x) + 17)
    one, two = jnp.ones(3), jnp.ones(4)
    with counted(found):
        jitted(one)
        jitted(one)
    assert found.number == 1 and found.seconds > 0
    with counted(found):
        jitted(two)
    jitted(jnp.ones(5))
    assert found.number == 2


def test_temporaries_are_those_of_the_compiled_program() -> None:
    x = jnp.ones((100, 100))
    assert allocated(jax.jit(lambda x: x @ x @ x), x).temporary_bytes == x.nbytes
    assert allocated(jax.jit(lambda x: 2 * x + 1), x).temporary_bytes == 0


@pytest.mark.parametrize(("donated", "aliased"), [((), 0), ((0,), 400), ((0, 1), 520)])
def test_aliased_are_the_donated_arrays_that_are_written_in_place(donated: tuple[int, ...], aliased: int) -> None:
    step = jax.jit(lambda p, s, g: (p - g, s + 1), donate_argnums=donated)
    arguments = jnp.ones(100), jnp.ones(30), jnp.ones(100)
    step(*arguments)
    again = Compilations()
    with counted(again):
        assert allocated(step, jnp.ones(100), jnp.ones(30), jnp.ones(100)).aliased_bytes == aliased
    assert again.number == 0


def test_no_compiled_program_comes_from_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = jax.config
    assert settings.jax_enable_compilation_cache
    with without_cache():
        assert not settings.jax_enable_compilation_cache
    assert settings.jax_enable_compilation_cache


def test_bytes_of_a_tree() -> None:
    assert tree_bytes({"a": jnp.ones((3, 4)), "b": [jnp.ones(5, jnp.bfloat16), None], "c": jnp.int32(1)}) == 48 + 10 + 4


# ------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, dict[str, Any]]:
    """A run over the smallest workload and its JSON. SGD fails in it, and optax's Adafactor compiles twice."""

    def refuse(momentum: bool) -> optax.GradientTransformation:
        raise TypeError("/code/somebody/file.py: no such\nkeyword")

    def unstable(momentum: bool) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            warnings.warn("while\ntraced", stacklevel=2)
            return updates, state + 0.5

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    file = tmp_path_factory.mktemp("speed") / "speed.json"
    written: list[Results] = []

    def write(results: Results) -> tuple[Path, ...]:
        written.append(results)
        return ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENTRIES, "optax-sgd", replace(ENTRIES["optax-sgd"], build=refuse, momentum=(False,)))
        patch.setitem(ENTRIES, "optax-adafactor", replace(ENTRIES["optax-adafactor"], build=unstable))
        patch.setattr(pages, "write", write)
        words = ["jax", "--quick", "--workload", "small", "--dtype", "float32", "--rounds", "2", "--write-docs"]
        assert _cli.main([*words, "--json", str(file)]) == 0
    return written[0], json.loads(file.read_text(encoding="utf-8"))


def rows(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["optimizer"]: row for row in case["measured"]}


def test_a_quick_run_end_to_end(quick: tuple[Results, dict[str, Any]]) -> None:
    _, found = quick
    assert found["schema"] == 1 and found["framework"] == "jax" and found["threads"] is None
    assert found["versions"].keys() == {"python", "adafactor", "jax", "jaxlib", "optax"}
    assert found["versions"]["optax"] == optax.__version__
    assert found["command"] == "python -m benchmarks jax --workload small --dtype float32 --rounds 2 --quick"
    without, with_momentum = map(rows, found["cases"])
    assert list(without) == ["optax-sgd", BASELINE, "optax-adafactor", "ours"]
    assert "optax-sgd" not in with_momentum and found["cases"][1]["left_out"] == {"optax SGD": "has no momentum"}

    # Two moments; factors of 64 + 64, then a momentum. A count of steps each.
    assert without[BASELINE]["state_bytes"] == 4 * 2 * PARAMETERS + 4
    assert without["ours"]["state_bytes"] == 4 * 20 * (64 + 64) + 4
    assert with_momentum["ours"]["state_bytes"] == 4 * (PARAMETERS + 20 * (64 + 64)) + 4
    assert without[BASELINE]["ratio"] == {"lower": 1.0, "median": 1.0, "upper": 1.0}
    for row in (without[BASELINE], without["ours"], with_momentum["ours"]):
        assert row["error"] is None and row["warnings"] == [] and row["milliseconds"]["median"] > 0
        assert row["compilations"] == 1 and 0 < row["compile_seconds"] < row["first_step_seconds"]
        assert row["aliased_bytes"] == 4 * PARAMETERS + row["state_bytes"] and row["temporary_bytes"] >= 0
        assert row["peak_bytes"] is row["launches"] is row["host_reads"] is None
    assert without["ours"]["bound_ratio"] > 0 and without[BASELINE]["bound_ratio"] is None


def test_what_fails_or_compiles_again_is_reported(quick: tuple[Results, dict[str, Any]]) -> None:
    found = rows(quick[1]["cases"][0])
    assert found["optax-sgd"]["error"] == "TypeError: file.py: no such keyword"
    assert found["optax-sgd"]["compilations"] is found["optax-sgd"]["ratio"] is None
    assert found["optax-adafactor"]["compilations"] == 2
    assert found["optax-adafactor"]["warnings"] == ["while traced"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["jaxx"], "FRAMEWORK must be one of torch, jax, torch_sharded, got 'jaxx'. Did you mean 'jax'"),
        # The file is refused last: nothing is measured where the threads are not refused.
        (
            ["jax", "--threads", "2", "--json", "no/such/folder/speed.json"],
            "--threads must be left out for jax, got '2'. .*taskset -c 0,1 python",
        ),
        (["jax", "--device", "tqu"], "--device must be one of cpu"),
        (["jax", "--optimizers", "adamw"], "--optimizers must be one of optax-sgd, .*Did you mean 'optax-adamw'"),
    ],
)
def test_wrong_usage_is_answered(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("benchmarks: ") and re.search(says, message), message


def test_the_baseline_is_in_every_run() -> None:
    assert list(entries.chosen(ENTRIES, Options(optimizers=("ours",)), BASELINE)) == [BASELINE, "ours"]
    assert entries.chosen(ENTRIES, Options(), BASELINE) == ENTRIES


def test_a_run_that_the_memory_is_too_small_for_is_refused() -> None:
    # 327,680 bytes of parameters: first values, gradients and three temporaries; parameters and a momentum of each, and
    # two moments. Then two arrays of 2^20 float32 numbers that are copied.
    two = {name: ENTRIES[name] for name in ("optax-sgd", BASELINE)}
    need = (5 + 2 + 4) * 4 * PARAMETERS + 2 * 4 * 2**20
    entries.check_memory(Options(quick=True), "small", "float32", 4, two, need)
    with pytest.raises(UsageError, match=r"small in float32 needs about .* for 2 optimizers, .*--optimizers"):
        entries.check_memory(Options(quick=True), "small", "float32", 4, two, need - 1)


# ------------------------------------------------------------------------------------------------- page


def test_each_framework_has_its_page_and_keeps_the_others(
    quick: tuple[Results, dict[str, Any]], tmp_path: Path
) -> None:
    assert pages.PAGES.keys() == set(FRAMEWORKS)
    (tmp_path / "images").mkdir()
    for name in pages.PAGES.values():
        (tmp_path / name).write_text("By hand.\n", encoding="utf-8")
    page, plot = pages.write(quick[0], tmp_path)
    assert (page.name, plot.name) == ("performance_jax.md", "performance-jax-cpu.png")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "performance.md").read_text(encoding="utf-8") == "By hand.\n"
    written = page.read_text(encoding="utf-8")
    assert written.startswith("By hand.\n\n<!-- generated: jax cpu -->\n## jax on cpu\n")
    assert f"images/{plot.name}" in written
    pages.write(quick[0], tmp_path)
    assert page.read_text(encoding="utf-8") == written
    assert all((pages.DOCS / name).is_file() for name in pages.PAGES.values())


def test_tables_have_the_columns_of_the_framework(quick: tuple[Results, dict[str, Any]]) -> None:
    head = "|  | ms | quartiles | ratio | × bound | state, % | temporaries, % | donated, % | XLA, s | first step, s |"
    lines = list(pages.section(quick[0]))
    assert f"{head} compilations |" in lines
    assert "|  | float32 | float32, momentum | state, % | temporaries, % |" in lines
    assert any("state and temporaries are those of the first column that has one." in line for line in lines)
    assert any(re.match(r".*, \d+ cores, \d+ GiB of memory; .* jax [\d.]+, ", line) for line in lines)
    shown = [str(column.header) for column in table.table(quick[0].cases[0]).columns]
    assert "donated\n%" in shown and "peak\n%" not in shown


def test_donated_is_the_share_of_the_parameters_and_the_state() -> None:
    row = Measured(optimizer="a", label="a", ours=False, state_bytes=600, aliased_bytes=400)
    case = Case(
        workload="small",
        dtype="float32",
        momentum=False,
        tensors=1,
        parameters=50,
        parameter_bytes=200,
        copy_bytes_per_second=1.0,
        measured=(row,),
    )
    assert case.donated(row) == 0.5
    assert case.donated(replace(row, aliased_bytes=None)) is None
