"""The speed: optimizer steps of this project and of its peers, measured side by side in one run.

    make bench                                # or: python -m benchmarks torch --quick
    make bench FRAMEWORK=jax                  # or: python -m benchmarks jax --quick
    make bench FRAMEWORK=torch_sharded        # or: python -m benchmarks torch_sharded --quick

What is measured, and how to read it, is in docs/performance.md, and what differs in JAX and on several processes in
docs/performance_jax.md and docs/performance_sharded.md.
"""
