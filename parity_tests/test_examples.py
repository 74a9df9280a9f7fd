"""The examples run as their docstrings say."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Both runs add in other orders, 1e-16 apart at first; three steps let that grow little.
ROUNDING = 1e-12


def test_a_run_with_fsdp2_has_the_losses_of_one_process(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    example = ["examples/train_fsdp2.py", "--steps", "3", "--plot", str(tmp_path / "curves.png")]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    found = subprocess.run(
        [sys.executable, *launcher, *example],
        cwd=ROOT,
        env={**os.environ, **loopback, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    steps = re.findall(r"^step +\d+   sharded ([\d.]+)   one process ([\d.]+)$", found.stdout, re.MULTILINE)
    assert len(steps) == 2 and steps[0][0] != steps[1][0], "it learns nothing"
    (deviation,) = re.findall(r"^largest deviation (\S+) nats", found.stdout, re.MULTILINE)
    assert float(deviation) <= ROUNDING
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
