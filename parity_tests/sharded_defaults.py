"""Sharded steps under other defaults of torch, for the processes of a test."""

import contextlib

import torch

from adafactor_torch import Adafactor

from . import sharded_runs as runs

SHAPES = ((13, 27), (13, 27), (300, 400), (27,), (3, 2, 4, 5), ())


def is_same(which: str, fused: bool) -> bool:
    """Whether what this process holds after three steps has the bits that it has under torch's own defaults."""
    from .test_torch_defaults import defaults

    found = []
    for under in (defaults(which), contextlib.nullcontext()):
        given = [runs.start(torch.bfloat16, SHAPES), *(runs.gradients(t, torch.bfloat16, SHAPES) for t in (1, 2, 3))]
        start, *grads = [[runs.laid("rows", i, x) for i, x in enumerate(tensors)] for tensors in given]
        params = [torch.nn.Parameter(x) for x in start]
        with under:
            optimizer = Adafactor(
                params, beta1=0.9, rounding="stochastic", telemetry=True, nonfinite="skip", fused=fused
            )
            for own in grads:
                for p, g in zip(params, own, strict=True):
                    p.grad = g
                optimizer.step()
        found.append(runs.shares([*params, *(x for p in params for _, x in sorted(optimizer.state[p].items()))]))
    return found[0] == found[1]
