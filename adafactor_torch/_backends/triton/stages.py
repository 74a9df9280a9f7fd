"""Which kernels a group launches, in which order, and for which programs.

Sums over processes come between two stages, so whole parameters have a single stage.
"""

from typing import Any

from . import kernels, tiles
from . import shard_kernels as shares

Stage = list[tuple[Any, str]]  # kernels, each with the kind of its programs (`TaskRow.programs`)


def stages(o: tiles.Options) -> list[Stage]:
    """The launches of a step."""
    if o.shares:
        return [_statistics(o) + _shares(o), _moments(o), _norms(o), _last()]
    moments: Stage = [(kernels.moments_kernel, "moments"), (kernels.row_mean_kernel, "matrices")] if o.factored else []
    norms: Stage = [(kernels.norm_kernel, "units")] if o.needs_update_rms else []
    return [_statistics(o) + moments + norms + _last()]


def _statistics(o: tiles.Options) -> Stage:
    return [(kernels.statistics_kernel, "units")] if o.factored or o.needs_parameter_rms or o.skips else []


def _last() -> Stage:
    return [(kernels.size_kernel, "batch"), (kernels.apply_kernel, "units")]


def _shares(o: tiles.Options) -> Stage:
    found: Stage = []
    if o.factored:
        found.append((shares.shares_kernel, "moments"))
    if o.shares in ("new", "old and squares"):
        found.append((shares.row_shares_kernel, "matrices"))
    if o.needs_parameter_rms:
        found.append((shares.weight_shares_kernel, "batch"))
    return found


def _moments(o: tiles.Options) -> Stage:
    found: Stage = [(kernels.moments_kernel, "moments")] if o.factored else []
    return [*found, (shares.row_shares_kernel, "matrices")] if o.shares == "stored" else found


def _norms(o: tiles.Options) -> Stage:
    found: Stage = []
    if o.factored:
        norm = kernels.row_mean_kernel if o.shares == "local" else shares.row_norm_kernel
        found.append((norm, "matrices"))
    if o.needs_update_rms:
        found += [(kernels.norm_kernel, "units"), (shares.update_shares_kernel, "batch")]
    return found
