"""The ways to compute a step. All of them do what `reference.update` does.

| backend | where | asked for with |
|---|---|---|
| reference | everywhere; the only one for tensors that only torch's operators can read | `foreach=False` |
| eager: row blocks of large tensors, stacks of small ones | everywhere; the default but on CUDA | `foreach=True` |
| C++ | CPU | `fused=True` |
| Triton | CUDA, where it is the default | `fused=True` |
"""
