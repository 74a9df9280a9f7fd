"""Stacked layers, banks of experts, T5X's axis rules, and fields that depend on the parameter's name."""

import enum
import re
from typing import Any

import jax
import numpy as np
import pytest
import torch

from adafactor_parity import JaxRunner, OracleRunner, TorchRunner
from adafactor_spec import Recipe, factoring, per_name, recipes, replace, schedules

Arrays = dict[str, np.ndarray]
# Relative to the largest element: the same sums over the same elements, in another order at most.
FLOAT64 = 1e-12
STEPS = 4
EVERYTHING = Recipe(lr=0.3, clipping_threshold=0.5, beta1=0.9, weight_decay=0.1, relative_step=False)
SETTINGS = {
    **{f"momentum of the {of}": replace(EVERYTHING, momentum_of=of) for of in ("grad", "update", "step")},
    "amsgrad, debiased": replace(EVERYTHING, amsgrad=True, beta2=0.9, debias=True),
    "decay before scale": replace(EVERYTHING, weight_decay_by="lr", decay_before_scale=True),
    "floor": replace(EVERYTHING, eps1=0.1, eps1_mode="floor", max_parameter_scale=0.5),
}


def runners(recipe: Recipe, params: Arrays) -> dict[str, Any]:
    return {
        "oracle": OracleRunner(recipe, params, "float64"),
        "jax": JaxRunner(recipe, params, "float64", jax.devices("cpu")[0]),
        "torch": TorchRunner(recipe, params, "float64", torch.device("cpu")),
    }


def stepped(recipe: Recipe, params: Arrays, grads: list[Arrays]) -> dict[str, Arrays]:
    """The parameters after the last step, by runner."""
    found = runners(recipe, params)
    for step in grads:
        for runner in found.values():
            runner.step(step)
    return {name: runner.params() for name, runner in found.items()}


def problem(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """A parameter whose slices along the first axis differ by powers of ten in size, and gradients that do, too."""
    rng = np.random.default_rng([seed, *shape])
    sizes = 10.0 ** np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return rng.standard_normal(shape) * sizes, [rng.standard_normal(shape) / sizes * 10.0**t for t in range(STEPS)]


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.max(np.abs(got - expected)) <= FLOAT64 * np.max(np.abs(expected))


@pytest.mark.sampled
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("shape", "batch", "rows", "cols"),
    [((3, 5, 4), (0,), (1,), (2,)), ((2, 3, 5, 4), (0, 1), (2,), (3,)), ((3, 7), (0,), (), ())],
    ids=["layers", "experts in layers", "layers of vectors"],
)
def test_a_stack_is_separate_parameters(
    setting: str, shape: tuple[int, ...], batch: tuple[int, ...], rows: tuple[int, ...], cols: tuple[int, ...]
) -> None:
    recipe = SETTINGS[setting]
    p, gs = problem(shape)
    stack = stepped(replace(recipe, factoring=factoring.explicit(rows, cols, batch)), {"w": p}, [{"w": g} for g in gs])
    places = list(np.ndindex(*(shape[axis] for axis in batch)))
    separate = {str(place): p[place] for place in places}
    alone = stepped(recipe, separate, [{str(place): g[place] for place in places} for g in gs])
    for runner, values in stack.items():
        for place in places:
            assert_close(values["w"][place], alone[runner][str(place)])
            assert_close(alone[runner][str(place)], alone["oracle"][str(place)])


LOGICAL_AXES = {
    "embedding": ("vocab", "embed"),
    r"layers/.*/attention": ("layers", "embed", "heads", "kv"),
    r"layers/.*/wi": ("layers", "embed", "mlp"),
    r"layers/.*/scale": ("layers", "embed"),
    r"moe/wi": ("expert", "embed", "expert_mlp"),
    "relpos": ("heads", "relpos_buckets"),
}


@pytest.mark.parametrize(
    ("name", "shape", "plan"),
    [
        # At most two axes without BATCH: by size, whatever the rule says.
        ("embedding", (200, 150), factoring.Plan((200, 150), (0,), (1,))),
        ("embedding", (200, 100), factoring.Plan((200, 100))),
        ("relpos", (200, 300), factoring.Plan((200, 300), (0,), (1,))),
        # Otherwise by the rule, however small; several axes may be columns.
        ("layers/0/attention", (2, 4, 3, 5), factoring.Plan((2, 4, 3, 5), (1,), (2, 3), (0,))),
        ("layers/mlp/wi", (2, 4, 3), factoring.Plan((2, 4, 3), (1,), (2,), (0,))),
        ("moe/wi", (2, 4, 3), factoring.Plan((2, 4, 3), (1,), (2,), (0,))),
        # Rows without columns: not factored, but still a stack.
        ("layers/norm/scale", (2, 4), factoring.Plan((2, 4), (), (), (0,))),
    ],
)
def test_logical_axes_become_plans(name: str, shape: tuple[int, ...], plan: factoring.Plan) -> None:
    recipe = recipes.t5x(1e-2, logical_factor_rules="moe", param_logical_axes=LOGICAL_AXES)
    assert recipe.needs_names and factoring.plan(recipe.factoring, shape, name) == plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"factor_map": {"w": ("ROW", "COL", "diag")}},
            r"factor_map\['w'\] must be ROW, COLUMN, BATCH or NONE .*'diag'",
        ),
        ({"factor_map": {"w": ("ROW", "NONE", "ROW")}}, r"factor_map\['w'\] must be both ROW and COLUMN or neither"),
        ({"factor_map": 3}, "factor_map must be a dict or pairs"),
        ({"factor_map": {"(": ("ROW", "COL", "COL")}}, r"must be regular expressions, got '\('"),
        ({"factor_map": {}, "factored": False}, "factor_map must be None with factored=False"),
        ({"logical_factor_rules": "standart"}, "Did you mean 'standard'"),
        ({"param_logical_axes": {"w": ("embed",)}}, "logical_factor_rules must be a dict .*got None"),
        (
            {"logical_factor_rules": "standard", "param_logical_axes": {"w": ("layers", "embde")}},
            r"param_logical_axes\['w'\] must be logical axes .*got 'embde'. Did you mean 'embed'",
        ),
        (
            {"logical_factor_rules": "standard", "param_logical_axes": {"w": ("embed", "mlp", "relpos_buckets")}},
            "where there are rows and columns",
        ),
        ({"multiply_by_parameter_scale": {"w": np.ones(2)}}, r"scale\['w'\] must be True or False, got array"),
    ],
)
def test_bad_axis_rules_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.t5x(1e-2, **arguments)


def test_t5x_refuses_what_it_has_no_rule_for() -> None:
    with pytest.raises(ValueError, match=r"^the parameter 'w' .* 0 to 2 axes, .*factor_map in recipes.t5x"):
        factoring.plan(recipes.t5x(1e-2).factoring, (2, 3, 4), "w")
    rules = recipes.t5x(1e-2, factor_map=[("wi", ("BATCH", "ROW", "COLUMN"))]).factoring
    with pytest.raises(ValueError, match=r"found by 'wi', got 'embedding'. Add a pattern"):
        factoring.plan(rules, (200, 150), "embedding")
    with pytest.raises(ValueError, match=r"^the parameter 'wi' .* must be with 3 axes"):
        factoring.plan(rules, (200, 150), "wi")
    two = recipes.t5x(1e-2, factor_map={"none": None, "size": "HEURISTIC_RULE", ".*": ("ROW", "COLUMN")}).factoring
    assert not factoring.plan(two, (200, 150, 2), "none").factored and factoring.plan(two, (200, 150), "size").factored
    with pytest.raises(ValueError, match="must be with 2 axes"):
        factoring.plan(two, (5,), "bias")
    assert factoring.plan(recipes.t5x(1e-2, factored=False).factoring, (2, 3, 4), "w") == factoring.Plan((2, 3, 4))


class _HParamMap:
    """What T5X's own looks like."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self._rules = [(re.compile(pattern), value) for pattern, value in pairs]


def test_t5x_s_own_objects_are_taken() -> None:
    role = enum.Enum("role", {"BATCH": 1, "ROW": 2, "COLUMN": 3})
    own: Any = _HParamMap([("wi", (role.BATCH, role.ROW, role.COLUMN)), (".*", None)])
    written = recipes.t5x(1e-2, factor_map=[("wi", ("BATCH", "ROW", "COLUMN")), (".*", None)])
    assert recipes.t5x(1e-2, factor_map=own) == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axes": 3}, r"axes must be a pair \(fewest, most\), got 3"),
        ({"axes": (3, 1)}, r"axes\[1\] must be at least 3, got 1"),
        ({"axes": ("a", "b")}, r"axes\[0\] must be a number, got 'a'"),
        ({"rows_last": 1}, "rows_last must be True or False, got 1"),
        ({"rows_last": True}, r"rule must be largest_two\(...\) with rows_last=True, got last_two"),
        ({"rule": "last_two"}, "rule must be a factoring rule, got 'last_two'"),
    ],
)
def test_bad_limits_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factoring.limited(**{"rule": factoring.last_two} | arguments)
    assert hash(factoring.limited(factoring.last_two, [1, 2])) == hash(factoring.limited(factoring.last_two, (1, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "taken"),
    [((6, 6), True), ((6, 6, 6), False), ((3, 3, 6, 8), True), ((8, 6, 3, 3), False), ((8, 3, 6), True)],
)
def test_rows_last_is_what_praxis_does_right(shape: tuple[int, ...], taken: bool) -> None:
    rule = factoring.limited(factoring.largest_two(2, ties="first"), rows_last=True)
    if taken:
        assert factoring.plan(rule, shape) == factoring.plan(rule.rule, shape)
    else:
        with pytest.raises(ValueError, match=r"largest_two\(min_dim=2, ties='first'\) alone does not"):
            factoring.plan(rule, shape)


def test_names_decide_inside_a_rule_for_all_names() -> None:
    inner = factoring.by_name({"bias": factoring.no_factoring})
    assert (
        factoring.by_name({".*": inner}).needs_names and not factoring.by_name({".*": factoring.last_two}).needs_names
    )
    assert factoring.limited(inner, (0, 2)).needs_names


def test_the_first_rule_found_in_a_name_decides() -> None:
    twice = [("w", ("BATCH", "ROW", "COLUMN")), ("w", ("ROW", "BATCH", "COLUMN")), (".*", ("ROW", "COLUMN", "BATCH"))]
    rule = recipes.t5x(1e-2, factor_map=twice).factoring
    assert factoring.plan(rule, (2, 3, 4), "a/w").batch == (0,) and factoring.plan(rule, (2, 3, 4), "b").batch == (2,)


def test_fields_by_name_are_each_parameter_s_own() -> None:
    """Two parameters in one optimizer, as if each had an optimizer of its own."""
    scaled, decay = per_name({"bias": False}, default=True), per_name({"bias": 0.0, "head": lambda t: 0.1 / t}, 0.01)
    recipe = replace(EVERYTHING, multiply_by_parameter_scale=scaled, weight_decay=decay, weight_decay_by="step")
    p, gs = problem((3, 5))
    names = ("bias", "head", "kernel")
    found = stepped(recipe, dict.fromkeys(names, p), [dict.fromkeys(names, g) for g in gs])
    for name in names:
        own = replace(recipe, multiply_by_parameter_scale=scaled.of(name), weight_decay=decay.of(name))
        for runner, values in stepped(own, {name: p}, [{name: g} for g in gs]).items():
            np.testing.assert_array_equal(found[runner][name], values[name])
            assert_close(values[name], found["oracle"][name])
    assert np.max(np.abs(found["oracle"]["bias"] - found["oracle"]["kernel"])) > 1e-3


def test_names_that_nothing_says_are_refused() -> None:
    recipe = replace(EVERYTHING, weight_decay=per_name({"kernel": 0.1}))
    with pytest.raises(ValueError, match="found by 'kernel', got 'bias'"):
        runners(recipe, {"bias": np.ones(3)})["oracle"].step({"bias": np.ones(3)})
    with pytest.raises(ValueError, match="found by 'kernel', got 'bias'"):
        TorchRunner(recipe, {"bias": np.ones(3)}, "float64", torch.device("cpu"))


def test_the_originals_rules_by_name() -> None:
    # praxis: a pattern has to fit from the start of the name, and the last one that fits counts.
    praxis = recipes.praxis(0.1, {"a": 0.1, "a/b": 0.2}, decay_method="pow", decay_pow=0.8)
    assert [praxis.for_name(name).weight_decay for name in ("a/c", "a/b", "x/a")] == [0.1, 0.2, 0.0]
    # Mesh-TensorFlow: a part of the name, taken literally.
    mesh = recipes.mesh_tensorflow(exclude_from_parameter_scale=["a.b", "bias"])
    scaled = [mesh.for_name(name).multiply_by_parameter_scale for name in ("x/a.b/y", "axb", "bias", "w")]
    assert scaled == [False, True, False, True]
    # big_vision: the whole name, the first one that fits counts.
    vit = recipes.big_vision_vit_g(by_kernel_name=True)
    decays = [vit.for_name(name).weight_decay for name in ("head/kernel", "mlp/kernel", "mlp/bias")]
    at_peak = [schedules.as_schedule(decay)(10_001) for decay in decays]  # type: ignore[arg-type]
    assert at_peak == pytest.approx([100 * 0.03 * 8e-4, 0.03 * 8e-4, 0.0])
