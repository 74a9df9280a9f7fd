"""Parameters that are a part of a tensor. They are refused: the sums that factoring needs run over the whole of it."""

import sys

from torch import Tensor

from adafactor_spec.errors import refusal

_REMEDY = "Until then use torch.nn.parallel.DistributedDataParallel."


def check_whole(who: str, p: Tensor) -> None:
    """Refuse a parameter that FSDP has sharded, or any other DTensor.

    torch.distributed is not imported for that: a DTensor exists only where somebody has imported its module, and FSDP1
    leaves its mark on the original parameters (`use_orig_params=True`) and on the flat ones alike. Sharded by FSDP1
    after the optimizer was built, a parameter is not seen here.

    Raises:
        ValueError: the parameter is a flat shard of FSDP1, or a DTensor.
    """
    if getattr(p, "_fsdp_flattened", False):
        remedy = (
            "Flat shards have neither rows nor columns and cannot be factored. FSDP2 "
            f"(torch.distributed.fsdp.fully_shard) keeps both, and support for it is to come. {_REMEDY}"
        )
        raise refusal(who, "a whole tensor", "a flat shard of FullyShardedDataParallel (FSDP1)", remedy)
    if isinstance(p, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())):
        remedy = f"DTensors, which FSDP2 and tensor parallelism make, are not supported yet. {_REMEDY}"
        raise refusal(who, "a whole tensor", "a DTensor", remedy)
