"""The Triton kernels, on a GPU where there is one, else in Triton's interpreter: in processes of their own.

The interpreter must be asked for before anything imports Triton, and then stays for as long as the process does.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .profiles import examples

ROOT = Path(__file__).parent.parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_GPU = HAS_TRITON and torch.cuda.is_available()
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
needs_a_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")


def run(*command: str, interpreted: bool = False) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    environment = inherited | ({"TRITON_INTERPRET": "1"} if interpreted else {}) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_triton
@pytest.mark.parametrize(
    "cases",
    [
        # Each a process of its own, so in any worker.
        pytest.param(cases, marks=pytest.mark.xdist_group(f"triton {cases}"))
        for cases in ("numbers", "nonfinite", "pairs", "contract", "parts", "compiled")
    ],
)
def test_the_kernels(cases: str) -> None:
    plain = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "parity_tests.triton_runs")
    interpreted = not HAS_GPU and cases != "compiled"
    done = run(
        "-m",
        "pytest",
        *plain,
        *["--thorough"] * examples(0, 1),
        f"parity_tests/triton_{cases}.py",
        interpreted=interpreted,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout, done.stdout


def test_the_optimizer_does_not_import_triton() -> None:
    """It takes a second, and most machines have no use for it."""
    done = run("-c", "import sys, adafactor_torch; assert not [name for name in sys.modules if name == 'triton']")
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------ on a GPU only


@needs_a_gpu
def test_a_step_waits_for_nothing() -> None:
    from adafactor_torch._backends.triton.launch_group import step
    from parity_tests.triton_runs import few, set_step

    tasks = few("average of updates", torch.bfloat16, telemetry=True, skipped=True, rounding="stochastic")
    for t in (1, 2, 3):
        set_step(tasks, t)
        for task in tasks:
            task.grad = task.grad.clone()
        torch.cuda.set_sync_debug_mode("error" if t > 1 else "default")
        try:
            step(tasks)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_a_gpu
def test_a_captured_step_is_the_step() -> None:
    from adafactor_torch._backends.triton.launch_group import step
    from parity_tests.triton_runs import few, kept, on_device, set_step

    captured, eager = (few("average of updates", torch.bfloat16) for _ in "12")
    set_step(captured, 1)
    now = [on_device(task.now) for task in captured]
    for task, numbers in zip(captured, now, strict=True):
        task.now = numbers
    start = [(task.p.clone(), {k: x.clone() for k, x in task.state.items()}) for task in captured]
    step(captured)  # compiles the kernels and makes the tables
    for task, (p, state) in zip(captured, start, strict=True):
        task.p.copy_(p)
        for name, x in state.items():
            task.state[name].copy_(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    for t in (1, 2, 3):
        set_step(eager, t)
        for task, numbers, other in zip(captured, now, eager, strict=True):
            task.grad.copy_(other.grad)
            for name, x in vars(numbers).items():
                if isinstance(x, torch.Tensor):
                    x.fill_(getattr(other.now, name))
        graph.replay()
        step(eager)
    for task, other in zip(captured, eager, strict=True):
        assert kept(task)[0] == kept(other)[0]


@needs_a_gpu
def test_a_capture_refuses_tensors_that_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from adafactor_torch._backends.triton.launch_group import step
    from parity_tests.triton_runs import few, set_step

    tasks = few("paper", torch.float32)
    set_step(tasks, 1)
    step(tasks)
    tasks[0].grad = tasks[0].grad.clone()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="step before"):
        step(tasks)
