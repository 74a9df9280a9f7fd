"""The character transformer in JAX, as a function of a flat dict of weights. `model_torch.py` computes the same."""

import jax
import jax.numpy as jnp

from .model import NORM_EPSILON, Config

Params = dict[str, jax.Array]


def loss(params: Params, inputs: jax.Array, targets: jax.Array, config: Config) -> jax.Array:
    """Mean cross-entropy in nats per character; `inputs` and `targets` are codes `[batch, context]`."""
    logs = jax.nn.log_softmax(logits(params, inputs, config))
    return -jnp.mean(jnp.take_along_axis(logs, targets[..., None], axis=-1))


def logits(params: Params, inputs: jax.Array, config: Config) -> jax.Array:
    """Scores of the next character, `[batch, context, vocabulary]`."""
    x = params["embed"][inputs] + params["position"][: inputs.shape[1]]
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        x = x + _attention(params, block, _norm(params, f"{block}.norm1", x), config.heads)
        hidden = _norm(params, f"{block}.norm2", x) @ params[f"{block}.up"]
        x = x + jax.nn.gelu(hidden, approximate=True) @ params[f"{block}.down"]
    return _norm(params, "norm", x) @ params["unembed"]


def _attention(params: Params, block: str, x: jax.Array, heads: int) -> jax.Array:
    batch, context, width = x.shape

    def split(y: jax.Array) -> jax.Array:  # [batch, heads, context, width / heads]
        return y.reshape(batch, context, heads, width // heads).transpose(0, 2, 1, 3)

    query, key, value = (split(x @ matrix) for matrix in params[f"{block}.qkv"])
    scores = query @ key.transpose(0, 1, 3, 2) / (width // heads) ** 0.5
    past = jnp.tril(jnp.ones((context, context), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    mixed = (weights @ value).transpose(0, 2, 1, 3).reshape(batch, context, width)
    return mixed @ params[f"{block}.out"]


def _norm(params: Params, name: str, x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + NORM_EPSILON) * params[f"{name}.scale"] + params[f"{name}.bias"]
