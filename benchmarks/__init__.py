"""The speed: optimizer steps of this project and of its peers, measured side by side in one run.

    make bench                                # or: python -m benchmarks torch --quick
    make bench FRAMEWORK=jax                  # or: python -m benchmarks jax --quick

What is measured, and how to read it, is in docs/performance.md, and for JAX in docs/performance_jax.md.
"""
