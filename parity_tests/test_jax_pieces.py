"""The public pieces of `adafactor_jax`: each alone by hand-worked numbers, and chained to the optimizers."""

import doctest
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adafactor_jax as pieces
from adafactor_jax import adafactor
from adafactor_spec import Recipe, factoring, schedules
from parity_tests.jax_steps import FLOAT64, RECIPES, kind, kinds, tree

PIECES: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "scale_by_factored_rms": pieces.scale_by_factored_rms,
    "clip_by_block_rms": pieces.clip_by_block_rms,
    "scale_by_step_size": pieces.scale_by_step_size,
    "scale_by_parameter_scale": pieces.scale_by_parameter_scale,
    "momentum": pieces.momentum,
    "add_decayed_weights": lambda **kwargs: pieces.add_decayed_weights(0.1, **kwargs),
}
every_piece = pytest.mark.parametrize("name", PIECES)

# --- A chain of pieces is an optimizer ------------------------------------------------------------------------------

# Pieces of one optimizer multiply what they scale u by into its smallest factor, and those that stand alone into u
# itself: five numbers (sqrt(C), debiasing, the clip factor, alpha, the sign), each rounded and multiplied in, by two
# ways. Relative to the largest element.
REGROUPED = 2 * 5 * 2 * 2.0**-53

RHO = schedules.relative_step(1e-2)
CHAINS: dict[str, tuple[Recipe, list[optax.GradientTransformationExtraArgs]]] = {
    "paper": (
        RECIPES["paper"],
        [pieces.scale_by_factored_rms(), pieces.clip_by_block_rms(), pieces.scale_by_parameter_scale(RHO)],
    ),
    "optax": (
        RECIPES["optax"],
        [
            pieces.scale_by_factored_rms(factoring=factoring.largest_two(2), state_dtype="param"),
            pieces.clip_by_block_rms(1.0),
            pieces.scale_by_parameter_scale(1e-2),
            pieces.momentum(0.9, momentum_dtype="bfloat16", momentum_rounding="decay"),
            pieces.add_decayed_weights(1e-3),
        ],
    ),
    "adafactor_pytorch": (
        RECIPES["adafactor_pytorch"],
        [
            pieces.scale_by_factored_rms(
                schedules.adam_decay(0.999),
                factoring=factoring.as_matrix,
                numerator=pieces.momentum(schedules.adam_decay(0.9), debias=True),
            ),
            pieces.clip_by_block_rms(1.0),
            pieces.scale_by_parameter_scale(RHO),
        ],
    ),
    "amsgrad": (
        RECIPES["amsgrad"],
        [
            pieces.scale_by_factored_rms(
                0.999,
                factoring=factoring.as_matrix,
                amsgrad=True,
                numerator=pieces.momentum(0.9, debias=True),
            ),
            pieces.clip_by_block_rms(1.0),
            pieces.scale_by_parameter_scale(RHO),
        ],
    ),
    "torch": (
        RECIPES["torch"],
        [
            pieces.scale_by_factored_rms(eps1=None, eps1_mode="floor", state_dtype="param"),
            pieces.clip_by_block_rms(1.0),
            pieces.scale_by_parameter_scale(RHO),
        ],
    ),
    "step": (
        RECIPES["step"],
        [
            pieces.scale_by_factored_rms(),
            pieces.clip_by_block_rms(1.0),
            pieces.scale_by_parameter_scale(RHO),
            pieces.momentum(0.9, momentum_dtype="bfloat16"),
            pieces.add_decayed_weights(1e-2, step=RHO, multiply_by_parameter_scale=True),
        ],
    ),
    "absolute, L2, clipping off": (
        Recipe(
            lr=0.1,
            relative_step=False,
            multiply_by_parameter_scale=False,
            clipping_threshold=None,
            beta1=0.9,
            weight_decay=0.1,
            weight_decay_by="grad",
        ),
        [
            pieces.add_decayed_weights(0.1),
            pieces.scale_by_factored_rms(),
            pieces.momentum(0.9),
            pieces.scale_by_step_size(0.1),
        ],
    ),
    "Keras's decay": (
        Recipe(weight_decay=0.1, weight_decay_by="lr", decay_before_scale=True, max_parameter_scale=0.5),
        [
            pieces.scale_by_factored_rms(),
            pieces.clip_by_block_rms(),
            pieces.scale_by_parameter_scale(RHO, max_parameter_scale=0.5, decay=0.1 * 1e-2),
            pieces.add_decayed_weights(0.1, step=1e-2),
        ],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_pieces_is_the_optimizer(name: str) -> None:
    recipe, chain = CHAINS[name]
    whole, parts = adafactor(recipe=recipe), optax.chain(*chain, optax.scale(-1.0))
    with jax.enable_x64(True):
        params = tree(0, "float64")
        state, states = whole.init(params), parts.init(params)
        for t in (1, 2, 3):
            expected, state = whole.update(tree(t, "float64"), state, params)
            updates, states = parts.update(tree(t, "float64"), states, params)
            assert kinds(updates) == kinds(expected)
            for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
                assert float(jnp.abs(one - other).max()) <= REGROUPED * float(jnp.abs(other).max())
            params = optax.apply_updates(params, updates)


# --- One piece alone ------------------------------------------------------------------------------------------------


def outputs(tx: optax.GradientTransformation, inputs: list[Any], param: Any) -> list[Any]:
    """What a piece makes of one input after the other, in float64."""
    with jax.enable_x64(True):
        params = jnp.asarray(param, "float64")
        state, made = tx.init(params), []
        for x in inputs:
            update, state = tx.update(jnp.broadcast_to(jnp.asarray(x, "float64"), params.shape), state, params)
            made.append(np.asarray(update))
        assert int(state.count) == len(inputs)
        return made


# G^2 = [[1, 1], [4, 9]]: R = (1, 6.5), C = (2.5, 5), mean(R) = 3.75, V = [[2/3, 4/3], [13/3, 26/3]].
GRAD = [[1.0, -1.0], [2.0, 3.0]]
V = np.array([[2 / 3, 4 / 3], [13 / 3, 26 / 3]])
U = np.array(GRAD) / np.sqrt(V)
ZERO = np.zeros((2, 2))
# A parameter of RMS 2.5.
PARAM = [3.0, 4.0, 0.0, 0.0]
NO_BATCH = factoring.explicit((), ())
ROWS = factoring.explicit((), (), batch=(0,))

BY_HAND: dict[str, tuple[optax.GradientTransformation, list[Any], Any, list[Any]]] = {
    # beta2 = 0 at t = 1, so V is that of the first gradient; an equal one leaves it.
    "factored": (pieces.scale_by_factored_rms(), [GRAD, ZERO], ZERO, [U, ZERO]),
    "factored, again": (pieces.scale_by_factored_rms(), [GRAD, GRAD], ZERO, [U, U]),
    "V whole": (pieces.scale_by_factored_rms(factoring=factoring.no_factoring), [GRAD], ZERO, [np.sign(GRAD)]),
    "constant beta2": (pieces.scale_by_factored_rms(0.75), [GRAD], ZERO, [2 * U]),
    # V = 0.25 * 4, then 0.875 * 1 + 0.125 * 4.
    "scheduled beta2": (pieces.scale_by_factored_rms(lambda t: 1 - 0.25 / t), [2.0, 2.0], 0.0, [2.0, 2 / 1.375**0.5]),
    "eps1 added": (pieces.scale_by_factored_rms(eps1=3.0), [1.0], 0.0, [0.5]),
    "eps1 a floor": (pieces.scale_by_factored_rms(eps1=4.0, eps1_mode="floor"), [1.0], 0.0, [0.25]),
    "eps1 of the dtype": (pieces.scale_by_factored_rms(eps1=None, eps1_mode="floor"), [2.0**-60], 0.0, [2.0**-8]),
    # V = 0.5 * 16, then 0.25 * 16 + 0.5 * 1, so the maximum stays 8: debiased by 0.5, then 0.75.
    "amsgrad": (pieces.scale_by_factored_rms(0.5, amsgrad=True), [4.0, 1.0], 0.0, [1.0, (3 / 32) ** 0.5]),
    "numerator": (pieces.scale_by_factored_rms(numerator=pieces.momentum(0.5)), [4.0, 4.0], 0.0, [0.5, 0.75]),
    "clip": (pieces.clip_by_block_rms(0.5), [PARAM, [0.1] * 4], PARAM, [[0.6, 0.8, 0, 0], [0.1] * 4]),
    "clip, default 1": (pieces.clip_by_block_rms(), [PARAM], PARAM, [[1.2, 1.6, 0, 0]]),
    "clip, off": (pieces.clip_by_block_rms(float("inf")), [PARAM], PARAM, [PARAM]),
    "clip by row": (pieces.clip_by_block_rms(factoring=ROWS), [[[4.0, 4], [0.5, 0]]], ZERO, [[[1, 1], [0.5, 0]]]),
    "step size": (pieces.scale_by_step_size(0.25), [2.0, 4.0], 0.0, [0.5, 1.0]),
    "step size, default 1e-2": (pieces.scale_by_step_size(), [2.0], 0.0, [0.02]),
    "step size of t": (pieces.scale_by_step_size(lambda t: t), [2.0, 2.0], 0.0, [2.0, 4.0]),
    "step size, relative": (pieces.scale_by_step_size(0.8, relative_step=True), [1.0, 1.0], 0.0, [0.8, 0.5**0.5]),
    "scale": (pieces.scale_by_parameter_scale(0.5), [2.0], PARAM, [[2.5] * 4]),
    "scale, smallest": (pieces.scale_by_parameter_scale(), [2.0], [0.0], [[2e-3]]),
    "scale, eps2": (pieces.scale_by_parameter_scale(eps2=5.0), [2.0], PARAM, [[10.0] * 4]),
    "scale, largest": (pieces.scale_by_parameter_scale(max_parameter_scale=2.0), [2.0], PARAM, [[4.0] * 4]),
    "scale by row": (pieces.scale_by_parameter_scale(factoring=ROWS), [1.0], [[3.0, 3], [4, 4]], [[[3, 3], [4, 4]]]),
    "scale, decayed": (pieces.scale_by_parameter_scale(decay=0.2), [2.0], PARAM, [[4.0] * 4]),
    "scale, decayed, masked": (pieces.scale_by_parameter_scale(decay=0.2, mask=False), [2.0], PARAM, [[5.0] * 4]),
    "scale of t": (pieces.scale_by_parameter_scale(lambda t: t), [1.0, 1.0], PARAM, [[2.5] * 4, [5.0] * 4]),
    "momentum": (pieces.momentum(0.75), [4.0, 8.0], 0.0, [1.0, 2.75]),
    "momentum, default 0.9": (pieces.momentum(), [4.0], 0.0, [0.4]),
    "momentum of t": (pieces.momentum(lambda t: 1 - 1 / t), [4.0, 8.0], 0.0, [4.0, 6.0]),
    "momentum, debiased": (pieces.momentum(0.75, debias=True), [4.0, 8.0], 0.0, [4.0, 2.75 / 0.4375]),
    # 1 + 2^-8 lies in the middle of two bfloat16 numbers and is rounded to the even one, 1; 0.75 and 0.25 are exact.
    "momentum, stored": (
        pieces.momentum(0.75, momentum_dtype="bfloat16"),
        [4 + 2**-6, 0.0],
        0.0,
        [1 + 2**-8, 0.75],
    ),
    # 8 + 3 * 2^-7 is rounded to 8, and 0.755859375 + 0.25 * 8 to 2.75; without the first rounding to 2.765625.
    "momentum, used": (
        pieces.momentum(0.75, momentum_dtype="bfloat16", momentum_rounding="use"),
        [4 + 2**-5, 8 + 3 * 2**-7],
        0.0,
        [1 + 2**-7, 2.75],
    ),
    # 0.75 * (1 + 2^-7) = 0.755859375 lies in the middle of 0.75390625 and 0.7578125; the second is even.
    "momentum, decayed": (
        pieces.momentum(0.75, momentum_dtype="bfloat16", momentum_rounding="decay"),
        [4 + 2**-5, 0.0],
        0.0,
        [1 + 2**-7, 0.7578125],
    ),
    "decay": (pieces.add_decayed_weights(0.5), [1.0], PARAM, [[2.5, 3, 1, 1]]),
    "decay by a step": (pieces.add_decayed_weights(0.5, step=0.1), [1.0], PARAM, [[1.15, 1.2, 1, 1]]),
    "decay of t": (pieces.add_decayed_weights(lambda t: 0.5 * t), [1.0, 1.0], [2.0], [[2.0], [3.0]]),
    "decay by the scaled step": (
        pieces.add_decayed_weights(0.5, step=0.1, multiply_by_parameter_scale=True),
        [1.0],
        PARAM,
        [[1.375, 1.5, 1, 1]],
    ),
    "decay by a bounded scale": (
        pieces.add_decayed_weights(0.5, multiply_by_parameter_scale=True, eps2=0.1, max_parameter_scale=2.0),
        [1.0],
        PARAM,
        [[4.0, 5, 1, 1]],
    ),
    "decay, masked": (pieces.add_decayed_weights(0.5, mask=lambda params: False), [1.0], PARAM, [[1.0] * 4]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    tx, inputs, param, expected = BY_HAND[name]
    for made, number in zip(outputs(tx, inputs, param), expected, strict=True):
        np.testing.assert_allclose(made, np.broadcast_to(number, made.shape), rtol=FLOAT64, atol=0)


@every_piece
def test_updates_have_the_gradients_type(name: str) -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        tx, params, grads = PIECES[name](), tree(0, dtype), tree(1, dtype)
        updates, state = jax.eval_shape(tx.update, grads, tx.init(params), params)
        assert jax.tree.map(kind, updates) == jax.tree.map(kind, grads)
        assert jax.tree.map(kind, state) == jax.tree.map(kind, tx.init(params))
        narrow_grads = jax.tree.map(lambda g: g.astype("float16"), grads)
        assert jax.eval_shape(tx.update, narrow_grads, tx.init(params), params)[0]["scale"].dtype == jnp.float16


@every_piece
def test_a_missing_gradient_is_passed_on(name: str) -> None:
    params = tree(0)
    updates, _ = jax.eval_shape(PIECES[name]().update, {**tree(1), "scale": None}, PIECES[name]().init(params), params)
    assert updates["scale"] is None


@every_piece
def test_a_piece_needs_the_parameters(name: str) -> None:
    tx = PIECES[name]()
    with pytest.raises(ValueError, match=r"^params must be given to update, got None\. Call tx\.update\("):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_every_piece_is_tested_and_knows_its_name() -> None:
    public = {name: getattr(pieces, name) for name in pieces.__all__ if inspect.isfunction(getattr(pieces, name))}
    assert set(public) == {*PIECES, "adafactor", "state_shardings"}
    assert {name: function.__name__ for name, function in public.items()} == {name: name for name in public}


# --- Examples -------------------------------------------------------------------------------------------------------


def failures(name: str, documented: Any) -> tuple[int, int]:
    """(failed, tried) examples of a docstring."""
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(documented, name):
        runner.run(test)
    return runner.failures, runner.tries


def indented_example(docstring: str) -> str:
    """The indented lines of a docstring that has no prompts."""
    assert ">>>" not in docstring
    return textwrap.dedent("\n".join(line for line in docstring.splitlines() if line.startswith("    ")))


@pytest.mark.parametrize("name", ["", *pieces.__all__])
def test_docstring_examples_run(name: str) -> None:
    documented = getattr(pieces, name) if name else pieces
    failed, tried = failures(name, documented)
    assert failed == 0
    if name == "adafactor":
        assert tried > 0
    if not name:
        example = indented_example(pieces.__doc__ or "")
        assert example
        exec(example, {})


def test_the_example_check_sees_faults() -> None:
    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    assert failures("wrong", wrong) == (1, 1)
