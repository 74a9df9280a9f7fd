"""Which gradients are finite."""

import math

import torch
from torch import Tensor


def are_finite(tensors: list[Tensor]) -> Tensor:
    """For each tensor whether all of its elements are finite, as one boolean tensor on their device.

    On a CPU the minimum and the maximum are found faster than a norm; a GPU computes all norms at once.
    """
    tensors = [x if x.numel() else x.new_zeros(1) for x in tensors]
    if tensors[0].is_cpu:
        bounds = [torch.stack(torch.aminmax(x)) for x in tensors]  # of a tensor with a NaN both are NaN
        return torch.isfinite(torch.stack(bounds)).all(dim=1)
    return torch.isfinite(torch.stack(torch._foreach_norm(tensors, math.inf)))
