"""The first half of `verify`: steps every recipe in the oracle, in JAX and in torch on the same gradients."""
