"""What processes have to agree about, case by case, for the processes of a test."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.debug import CommDebugMode

from adafactor_spec import Recipe, factoring
from adafactor_torch import Adafactor
from adafactor_torch._backends.eager.blocks import BlockedTask
from adafactor_torch._sharding import process_groups as _process_groups
from adafactor_torch._sharding.dtensor import shard_of
from adafactor_torch._task.matrix_view import from_matrices
from adafactor_torch._task.task import NO_AMP, ParamConfig, Task

from . import sharded_runs as runs
from .sharded_runs import SHAPES, Shape

SOME: tuple[Shape, ...] = ((13, 27), (16, 8), (27,))


def lr_of_t(t: Any) -> Any:
    return 0.3 / t


def _made(name: str, shapes: tuple[Shape, ...], dtype: torch.dtype = torch.float64, **fields: Any) -> Adafactor:
    params = [torch.nn.Parameter(runs.laid(name, i, x)) for i, x in enumerate(runs.start(dtype, shapes))]
    return Adafactor([(f"p{i}", p) for i, p in enumerate(params)], **{"lr": 0.05, **fields})


def _params(optimizer: Adafactor) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _give(name: str, optimizer: Adafactor, grads: list[Tensor | None]) -> None:
    for i, (p, g) in enumerate(zip(_params(optimizer), grads, strict=True)):
        p.grad = None if g is None else runs.laid(name, i, g)


def _error(optimizer: Adafactor, plain: Adafactor, shapes: tuple[Shape, ...]) -> float:
    theirs = [p.detach() for p in _params(plain)]
    return runs.error(_params(optimizer), theirs, runs.start(theirs[0].dtype, shapes))


def missing_here(name: str, fused: bool) -> float:
    """The error of a run in which the last process has no gradient of some parameters, against zeros in its place."""
    optimizer, plain = (_made(layout, SHAPES, beta1=0.9, fused=fused) for layout in (name, "plain"))
    without = dist.get_rank() == dist.get_world_size() - 1
    for t in range(1, 6):
        whole: list[Tensor | None] = list(runs.gradients(t, torch.float64, SHAPES))
        _give(name, optimizer, whole)
        for i, p in enumerate(_params(optimizer)):
            if i % 2 == t % 2 and not any(placement.is_replicate() for placement in p.placements):
                if without:
                    runs.local(p.grad).zero_()
                whole[i] = p.grad.full_tensor()
                p.grad = None if without else p.grad
        _give("plain", plain, whole)
        optimizer.step()
        plain.step()
    return _error(optimizer, plain, SHAPES)


def missing_everywhere(fused: bool) -> bool:
    """Whether a parameter without a gradient, beside others, stays what it was and gets no state."""
    optimizer = _made("row", SOME, weight_decay=0.5, weight_decay_by="one", telemetry=True, fused=fused)
    idle = _params(optimizer)[1]
    before = runs.local(idle).clone()
    for t in (1, 2):
        grads: list[Tensor | None] = list(runs.gradients(t, torch.float64, SOME))
        _give("row", optimizer, [grads[0], None, grads[2]])
        optimizer.step()
    steps = [float(optimizer.state[p]["step"]) for p in _params(optimizer) if p in optimizer.state]
    return torch.equal(runs.local(idle), before) and idle not in optimizer.state and steps == [2.0, 2.0]


def skipped(name: str, fused: bool) -> tuple[float, list[int], list[float], float] | None:
    """(Error against one process, steps left out and taken of every parameter, learning rate) after five steps."""
    if not runs.is_in(name):
        return None
    both = [
        _made(layout, SOME, lr=lr_of_t, nonfinite="skip", telemetry=True, relative_step=False, fused=fused)
        for layout in (name, "plain")
    ]
    for t in range(1, 6):
        grads = runs.gradients(t, torch.float64, SOME)
        if t in (1, 3):
            grads[2][-1] = torch.inf if t == 1 else torch.nan
        if t == 2:
            grads[0][0, 0] = -torch.inf
        for layout, optimizer in zip((name, "plain"), both, strict=True):
            _give(layout, optimizer, list(grads))
            optimizer.step()
    optimizer, plain = both
    skips = [int(told["skipped"]) for told in optimizer.telemetry().values()]
    steps = [float(optimizer.state[p]["step"]) for p in _params(optimizer)]
    return _error(optimizer, plain, SOME), skips, steps, optimizer.param_groups[0]["lr"]


def found_inf(name: str, fused: bool) -> bool:
    """Whether a step is left out on all processes where a GradScaler says so on one, and the next is taken."""
    optimizer: Any = _made(name, SOME, fused=fused)
    before = [runs.local(p).clone() for p in _params(optimizer)]
    alike = []
    for bad in (True, False):
        _give(name, optimizer, list(runs.gradients(1, torch.float64, SOME)))
        found = torch.tensor(float(bad and dist.get_rank() == 1))
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), found
        optimizer.step()
        pairs = zip(_params(optimizer), before, strict=True)
        alike.append(all(torch.equal(runs.local(p), old) for p, old in pairs if old.numel()))
    return alike == [True, False]


def rounded(name: str, fused: bool) -> tuple[int, float]:
    """(Elements that do not count as what they are in the whole; the share of them that is rounded differently)."""
    wrong = differing = total = 0
    options: dict[str, Any] = {"rounding": "stochastic", "fused": fused}
    optimizer, plain = (_made(layout, SHAPES, torch.bfloat16, **options) for layout in (name, "plain"))
    config = Recipe(lr=0.1)
    for i, p in enumerate(_params(optimizer)):
        plan = factoring.plan(factoring.last_two, tuple(p.shape))
        shard = shard_of(p, plan, ())
        one = ParamConfig(config, shard.plan, "bfloat16", "stochastic")
        task = Task(runs.local(p), runs.local(p), {}, one, config.at(1))
        task.state = {key: torch.zeros(shape) for key, (shape, _) in one.layout.items()}
        task.shard = shard
        part = BlockedTask(task, NO_AMP, 1 << 18)
        (elements,) = part.elements()
        whole = torch.arange(p.numel(), dtype=torch.int32).view(plan.shape)
        expected = runs.part_of(whole, p)
        assert elements is not None
        wrong += int((from_matrices(elements, shard.plan, tuple(expected.shape)) != expected).sum())
        p.grad = runs.laid(name, i, runs.gradients(1, torch.bfloat16, SHAPES)[i])
    _give("plain", plain, list(runs.gradients(1, torch.bfloat16, SHAPES)))
    optimizer.step()
    plain.step()
    for p, whole in zip(_params(optimizer), _params(plain), strict=True):
        differing += int((runs.local(p) != runs.part_of(whole.detach(), p)).sum())
        total += runs.local(p).numel()
    return wrong, differing / max(total, 1)


def telemetry(name: str, fused: bool) -> float:
    """How far telemetry is from that of one process, relative to it."""
    both = [_made(layout, SOME, telemetry=True, fused=fused) for layout in (name, "plain")]
    for layout, optimizer in zip((name, "plain"), both, strict=True):
        runs.advance(layout, optimizer, 1, 3)
    return _farthest(both)


def telemetry_switched(name: str, fused: bool) -> float:
    """The same, where it is switched on and off between steps, and nothing else asks for RMS(u)."""
    both = [_made(layout, SOME, clipping_threshold=None, fused=fused) for layout in (name, "plain")]
    worst = 0.0
    for asked, first in ((False, 1), (True, 3), (False, 5), (True, 7)):
        for layout, optimizer in zip((name, "plain"), both, strict=True):
            for group in optimizer.param_groups:
                group["telemetry"] = asked
            runs.advance(layout, optimizer, first, first + 1)
        if asked:
            worst = max(worst, _farthest(both))
    return worst


def _farthest(both: list[Adafactor]) -> float:
    worst = 0.0
    for ours, theirs in zip(*(optimizer.telemetry().values() for optimizer in both), strict=True):
        for key, value in theirs.items():
            worst = max(worst, float(((ours[key] - value).abs() / value.abs().clamp(min=1e-3)).max()))
    return worst


def placed() -> None:
    """Every tensor of a state lies as it should: reduced axes replicated, all others as the parameter's."""
    optimizer = _made("row", ((13, 27), (6, 5, 9), (27,)), beta1=0.9, amsgrad=True)
    runs.advance("row", optimizer, 1, 1)
    matrix, _, vector = (optimizer.state[p] for p in _params(optimizer))
    rows, columns = _params(optimizer)[0].placements
    assert matrix["v_row"].placements == (rows, Replicate()) and matrix["v_row"].shape == (13, 1)
    assert matrix["v_col"].placements == (Replicate(), columns) and matrix["v_col"].shape == (1, 27)
    for entry in ("m", "v_max"):
        assert matrix[entry].placements == (rows, columns) and matrix[entry].shape == (13, 27)
    assert vector["v"].placements == _params(optimizer)[2].placements
    assert not isinstance(matrix["step"], DTensor) and float(matrix["step"]) == 1.0


def narrow_state(fused: bool) -> tuple[float, dict[str, int]]:
    """(How far RMS(u) is from that of one process with R and C in 16 bits; the collectives of the last step)."""
    both = [
        _made(layout, SOME, torch.bfloat16, state_dtype="param", telemetry=True, clipping_threshold=None, fused=fused)
        for layout in ("row", "plain")
    ]
    runs.advance("row", both[0], 1, 1)
    runs.advance("plain", both[1], 1, 1)
    ours, theirs = (float(optimizer.telemetry()["p0"]["update_rms"]) for optimizer in both)
    with CommDebugMode() as mode:
        runs.advance("row", both[0], 2, 2)
    counts = {str(kind): count for kind, count in mode.get_comm_counts().items() if count}
    return abs(ours / theirs - 1.0), counts


def one_by_one(name: str, fused: bool) -> float:
    """The error of a run whose parameters are stepped one by one."""
    optimizer, plain = (_made(layout, SOME, beta1=0.9, fused=fused) for layout in (name, "plain"))
    runs.advance("plain", plain, 1, 3)
    for t in range(1, 4):
        _give(name, optimizer, list(runs.gradients(t, torch.float64, SOME)))
        for p in reversed(_params(optimizer)):
            optimizer.step_param(p)
    return _error(optimizer, plain, SOME)


def even_first() -> bool:
    """Whether what has the same size on all processes stands at the same place of every flat buffer.

    Of (30, 3) two processes side by side have two columns and one, so that what stands behind them would move.
    """
    optimizer, buffers = _made("row", ((30, 3), (16,), (30, 3), (8, 4))), list[list[int]]()
    added = _process_groups._add

    def add(values: list[Tensor], group: Any) -> None:
        buffers.append([value.numel() for value in values])
        added(values, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_process_groups, "_add", add)
        runs.advance("row", optimizer, 2, 2)
    sizes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, buffers)
    unlike = False
    for of_buffer in zip(*sizes, strict=True):
        for place in zip(*of_buffer, strict=True):
            assert not (unlike and len(set(place)) == 1 and place[0] > 1), "it stands behind what is uneven"
            unlike = len(set(place)) > 1
        unlike = False
    return any(len(set(place)) > 1 for of_buffer in zip(*sizes, strict=True) for place in zip(*of_buffer, strict=True))


def elsewhere() -> tuple[bool, str]:
    """Whether processes outside of a mesh let what lies there alone, and how a gradient on another mesh is refused."""
    optimizer = _made("rows of two", SOME)
    for i, (p, g) in enumerate(zip(_params(optimizer), runs.gradients(1, torch.float64, SOME), strict=True)):
        p.grad = runs.laid("rows of two", i, g)
    optimizer.step()
    inside = dist.get_rank() < 2
    optimizer_on_line = _made("rows", SOME)
    _give("row", optimizer_on_line, list(runs.gradients(1, torch.float64, SOME)))
    with pytest.raises(ValueError, match="mesh of the gradient of 'p0'") as other:
        optimizer_on_line.step()
    return bool(optimizer.state) == inside, str(other.value)


def refusals() -> tuple[str, str]:
    with pytest.raises(ValueError, match="reshapes") as reshaped:
        _made("rows", SHAPES, factoring=factoring.as_matrix)
    _made("copies", SHAPES, factoring=factoring.as_matrix)
    terms = DTensor.from_local(torch.ones(4, 3), runs.meshes()["line"], [Partial()], run_check=False)
    with pytest.raises(ValueError, match="must be Shard or Replicate") as partial:
        Adafactor([("p", torch.nn.Parameter(terms))])
    return str(reshaped.value), str(partial.value)
