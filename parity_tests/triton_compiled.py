"""The Triton kernels compile for GPUs that need not be here: the interpreter takes what a compiler does not."""

import re
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adafactor_torch._backends.triton import launch_group as _launch_group
from adafactor_torch._backends.triton import tiles as _triton_tiles
from adafactor_torch._task.task import Amp
from parity_tests.sharded_parts import SPLITS, Parts
from parity_tests.triton_runs import few, set_step

TARGETS = {"H100": GPUTarget("cuda", 90, 32), "MI300": GPUTarget("hip", "gfx942", 64)}
ALL: dict[str, Any] = {"rounding": "stochastic", "telemetry": True, "skipped": True}
CASES: dict[str, tuple[str, torch.dtype, tuple[int, ...], dict[str, Any]]] = {
    "bfloat16 matrix": ("bfloat16 average, used", torch.bfloat16, (64, 512), ALL),
    "float16 kernel": ("gradients and amsgrad", torch.float16, (3, 2, 3, 3), ALL),
    "float64 vector": ("decay before scale", torch.float64, (40,), ALL),
    "bfloat16 vector": ("average of steps", torch.bfloat16, (512,), {"rounding": "kahan"}),
}
NAMES = ("programs", "ints", "moving", "floats", "numbers", "workspace", "flags", "grad_scale", "found_inf")
PARTS = {"bfloat16 matrix, rows split": "rows", "bfloat16 matrix, both split": "both"}
PAIRS = [(case, "H100") for case in CASES] + [("bfloat16 matrix", "MI300")]
PAIRS += [(case, "H100") for case in PARTS]
TYPES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every kernel of one case, compiled for one target."""
    case, target = request.param
    name, dtype, shape, asked = CASES[case.partition(",")[0]]
    found: dict[str, Any] = {}

    def compile_it(kernel: Any, programs: Any, tables: tuple[Any, ...], options: _triton_tiles.Options) -> None:
        signature = {name: TYPES[x.dtype] for name, x in zip(NAMES, (programs, *tables), strict=True)}
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(NAMES))}
        source = ASTSource(kernel, {**signature, "o": "constexpr"}, {(len(NAMES),): options}, aligned)
        if kernel.fn.__name__ not in found:  # the parts of other processes are compiled alike
            found[kernel.fn.__name__] = triton.compile(source, target=TARGETS[target], options=_launch_group.LAUNCH)

    tasks = few(name, dtype, [shape], **asked)
    set_step(tasks, 1)
    scale = torch.ones(())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(_launch_group, "launch", compile_it)
        amp = Amp(scale, scale) if asked is ALL else Amp()
        if case in PARTS:
            Parts(tasks, SPLITS[PARTS[case]]).step(amp)
        else:
            _launch_group.step(tasks, amp)
    return found


@pytest.mark.parametrize("compiled", PAIRS, ids=str, indirect=True)
def test_every_kernel_compiles_without_atomics(compiled: dict[str, Any]) -> None:
    assert {"size_kernel", "apply_kernel"} <= set(compiled)
    for kernel in compiled.values():
        assert not re.search(r"\b(atom|red)\.|_atomic_", kernel.asm.get("ptx") or kernel.asm["amdgcn"])


@pytest.mark.parametrize("compiled", [PAIRS[0], PAIRS[-1]], ids=str, indirect=True)
def test_large_tensors_are_read_and_written_16_bytes_at_a_time(compiled: dict[str, Any]) -> None:
    for name in ("statistics_kernel", "norm_kernel", "apply_kernel"):
        ptx = compiled[name].asm["ptx"]
        assert ".v4.b32" in ptx
        assert ".global.b16" not in ptx, "a bfloat16 that travels alone"
