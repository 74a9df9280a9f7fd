"""Whatever a constructor is given, it takes for what it is or refuses in form: both frameworks, every way in."""

import copy
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from hypothesis import given
from hypothesis import strategies as st

import adafactor_jax
from adafactor_jax import adafactor
from adafactor_spec import FIELDS as NAMES
from adafactor_spec import Recipe, factoring, from_plain, oracle, per_name, replace, to_plain
from adafactor_spec._schedule import constant
from adafactor_torch import Adafactor

from . import hostile_fields as fields
from .hostile import NOTHING, Hostile, cases, refusal_of
from .torch_runs import FLOAT64, values

BASE = Recipe()
SHAPES = ((2, 3), (3,))
PARAMS = [values(shape, seed) for seed, shape in enumerate(SHAPES)]
GRADS = [[values(shape, 10 * t + seed) for seed, shape in enumerate(SHAPES)] for t in (1, 2)]


def parameters() -> list[tuple[str, torch.nn.Parameter]]:
    return [(f"p{i}", torch.nn.Parameter(torch.tensor(x))) for i, x in enumerate(PARAMS)]


def expected(recipe: Recipe) -> list[Any]:
    """The oracle's parameters after the steps."""
    found = []
    for i, p in enumerate(PARAMS):
        state = oracle.init(recipe, p, name=f"p{i}")
        with np.errstate(all="ignore"):
            for grads in GRADS:
                p, state = oracle.step(recipe, p, grads[i], state, name=f"p{i}")
        found.append(p)
    return found


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    """Infinities and NaN in the same places, all else within the budget of float64."""
    for one, other in zip(found, wanted, strict=True):
        finite = np.isfinite(other)
        assert np.array_equal(one[~finite], other[~finite], equal_nan=True), (one, other)
        largest = np.max(np.abs(other[finite]), initial=1.0)
        assert np.max(np.abs(one - other)[finite], initial=0.0) <= FLOAT64 * largest, (one, other)


def after_steps(optimizer: Adafactor) -> list[Any]:
    tensors = optimizer.param_groups[0]["params"]
    for grads in GRADS:
        for p, g in zip(tensors, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    return [p.detach().numpy() for p in tensors]


# What a field may be kept as: whatever it was given as, a checkpoint can hold it.
PLAIN = (bool, int, float, str, type(None))


def assert_plain(recipe: Recipe) -> None:
    for name, value in vars(recipe).items():
        for one in value.values if isinstance(value, per_name) else (value,):
            assert type(one) in PLAIN or callable(one) or isinstance(one, factoring.Rule), (name, type(one))


# ---------------------------------------------------------------------------------------------------------- fields


def written(given: Mapping[str, Any]) -> Adafactor:
    optimizer = Adafactor(parameters())
    before = copy.deepcopy([optimizer.param_groups[0][name] for name in NAMES])
    optimizer.param_groups[0].update(given)
    for _, p in zip(range(2), optimizer.param_groups[0]["params"], strict=True):
        p.grad = torch.zeros_like(p)
    try:
        optimizer.step()
    except (ValueError, TypeError):
        assert not optimizer.state
        assert_same([p.detach().numpy() for p in optimizer.param_groups[0]["params"]], PARAMS)
        optimizer.param_groups[0].update(zip(NAMES, before, strict=True))
        assert_same(after_steps(optimizer), expected(BASE))
        raise
    fresh = Adafactor(parameters())
    fresh.param_groups[0].update(given)
    return fresh


def added(given: Mapping[str, Any]) -> Adafactor:
    optimizer = Adafactor([("first", torch.nn.Parameter(torch.ones(2)))])
    try:
        optimizer.add_param_group({"params": parameters(), **given})
    except (ValueError, TypeError):
        assert len(optimizer.param_groups) == 1
        raise
    del optimizer.param_groups[0]
    return optimizer


WAYS: dict[str, Callable[[Mapping[str, Any]], Adafactor]] = {
    "reference": lambda given: Adafactor(parameters(), foreach=False, **given),
    "keywords": lambda given: Adafactor(parameters(), **given),
    "a group": lambda given: Adafactor([{"params": parameters(), **given}]),
    "a recipe": lambda given: Adafactor(parameters(), recipe=replace(BASE, **given)),
    "a group's recipe": lambda given: Adafactor([{"params": parameters(), "recipe": Recipe(**given)}]),
    "added": added,
    "written": written,
}


@cases(100, 6000)
@given(fields.crossed(), st.sampled_from(list(WAYS)))
def test_fields(given: dict[str, Hostile], way: str) -> None:
    """Every way into the torch optimizer takes the fields that a recipe takes, and they mean the same."""
    bad, sure = fields.must_be_refused(given, vars(BASE)), all(value.sure for value in given.values())
    raw = {name: value.value for name, value in given.items()}
    about = {"weight_decay_by", "max_parameter_scale", *given}
    made, why = refusal_of(lambda: Recipe(**raw), about)
    assert (made is None) >= bad, "taken, although it is out of range"
    assert why is None or bad or not sure, f"refused, although it is in range: {why}"
    optimizer, refused = refusal_of(lambda: WAYS[way](raw), about)
    if "lr" in given and given["lr"].plain is None:  # a recipe may have none, an optimizer needs one
        assert optimizer is None
        return
    if "lr" not in given or not isinstance(raw["lr"], torch.Tensor):  # whose number torch's optimizer takes
        assert (refused is None) == (why is None), (refused, why)
    if optimizer is None or made is None:
        return
    assert_plain(made)
    plain = replace(BASE, **fields.plain(given))
    # A decay that is an array of 0 stays a decay, as the array may have another value when a step is traced.
    decay = raw.get("weight_decay")
    decay = decay.rules[0][1] if isinstance(decay, per_name) else decay
    a_decay = isinstance(decay, jax.Array | constant) and not plain.decays
    assert (replace(made, weight_decay=plain.weight_decay) if a_decay else made) == plain
    assert from_plain(to_plain(made.factoring)) == made.factoring
    assert made.describe()
    assert a_decay or hash(made) == hash(plain)
    assert pickle.loads(pickle.dumps(made)) == made
    assert_same(after_steps(optimizer), expected(plain))


# ------------------------------------------------------------------------------------------------------------- JAX


def jax_after_steps(tx: optax.GradientTransformation) -> list[Any]:
    with jax.enable_x64(True):
        params: Any = {f"p{i}": jnp.asarray(p) for i, p in enumerate(PARAMS)}
        state = tx.init(params)
        for grads in GRADS:
            updates, state = tx.update({f"p{i}": jnp.asarray(g) for i, g in enumerate(grads)}, state, params)
            params = optax.apply_updates(params, updates)
        return [np.asarray(p) for p in params.values()]


def in_jax(given: Mapping[str, Any]) -> Any:
    return adafactor(**{"learning_rate" if name == "lr" else name: value for name, value in given.items()})


@cases(12, 3000)
@given(fields.crossed())
def test_fields_in_jax(given: dict[str, Hostile]) -> None:
    bad, sure = fields.must_be_refused(given, vars(BASE)), all(value.sure for value in given.values())
    raw = {name: value.value for name, value in given.items()}
    tx, why = refusal_of(lambda: in_jax(raw), {"learning_rate", "weight_decay_by", "max_parameter_scale", *given})
    if "lr" in given and given["lr"].plain is None:  # no recipe's learning rate is left out
        assert tx is None
        return
    assert (tx is None) >= bad, "taken, although it is out of range"
    assert why is None or bad or not sure, f"refused, although it is in range: {why}"
    if tx is not None:
        assert_same(jax_after_steps(tx), expected(replace(BASE, **fields.plain(given))))


LIMITS: dict[str, Callable[[Any], bool]] = {
    **{name: field.fits for name, field in fields.FIELDS.items()},
    "threshold": fields.number(above=0, infinite=True),
    "beta1": fields.schedule(at_least=0, below=1),
    "learning_rate": fields.schedule(),
    "step": fields.schedule(),
    "decay": lambda plain: plain is not None and fields.FIELDS["weight_decay"].fits(plain),
}
LIKE = {"threshold": "clipping_threshold", "learning_rate": "lr", "step": "lr", "decay": "weight_decay"}
PIECES = [name for name in adafactor_jax.__all__ if name[0].islower() and name not in ("adafactor", "state_shardings")]
NOT_FIELDS = {"numerator", "mask"}


@st.composite
def pieces(draw: st.DrawFn) -> tuple[str, dict[str, Hostile]]:
    name = draw(st.sampled_from(PIECES))
    known = [one for one in inspect.signature(getattr(adafactor_jax, name)).parameters if one not in NOT_FIELDS]
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))
    given = {one: draw(fields.FIELDS[LIKE.get(one, one)].values) for one in chosen}
    return name, {"weight_decay": Hostile("0.1", 0.1, 0.1), **given} if name == "add_decayed_weights" else given


@cases(40, 3000)
@given(pieces())
def test_pieces(drawn: tuple[str, dict[str, Hostile]]) -> None:
    """A piece takes an argument in any form for the plain one, to the bit."""
    name, given = drawn
    build, plain = getattr(adafactor_jax, name), {one: value.plain for one, value in given.items()}
    bad = any(plain[one] is NOTHING or not LIMITS[one](plain[one]) for one in given)
    largest = plain.get("max_parameter_scale")
    bad = bad or (largest is not None and plain.get("eps2", BASE.eps2) > largest)
    bad = bad or (
        plain.get("relative_step") is True and not fields.FIELDS["lr"].fits(plain.get("learning_rate", BASE.lr))
    )
    tx, why = refusal_of(
        lambda: build(**{one: value.value for one, value in given.items()}), {*given, "max_parameter_scale"}
    )
    assert (tx is None) >= bad, "taken, although it is out of range"
    assert why is None or bad or not all(value.sure for value in given.values()), why
    if tx is not None:
        found, wanted = jax_after_steps(tx), jax_after_steps(build(**plain))
        assert all(one.tobytes() == other.tobytes() for one, other in zip(found, wanted, strict=True))
