"""Train the transformer of `adafactor verify` with FSDP2, and show that its loss curve is that of one process.

On a CPU, from the root of the repository, in the environment that `make` makes:

    .venv/bin/torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 4 examples/train_fsdp2.py

`--steps 100`, `--dtype float32`, `--release` (gradients are released in the backward pass) and `--plot curves.png` are
further arguments. Every process holds a share of each parameter and of its state, and learns from its share of a batch.
Then the first process trains the same model alone, as plain tensors, and the losses of both runs are compared.

In float64 they differ by roundings: 1e-9 is allowed in 100 steps, 1e-3 in float32 (adafactor_parity/_budgets.py says
why). If they are farther apart, the exit status is 1.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from adafactor_parity import _budgets, _text
from adafactor_parity._model import Config, initial_weights
from adafactor_parity._model_torch import Transformer
from adafactor_torch import Adafactor, release_gradients

BATCH, SEED = 16, 0
LIMITS = {"float64": _budgets.FLOAT64_WEIGHTS, "float32": _budgets.FLOAT32_LOSS}


def main() -> int:
    """Train twice and compare; the exit status."""
    asked = arguments()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    corpus = _text.load(None)
    try:
        sharded = train(corpus, asked, shards=dist.get_world_size())
        alone = train(corpus, asked) if dist.get_rank() == 0 else []
        dist.barrier()  # the others wait for the first one
    finally:
        dist.destroy_process_group()
    return report(sharded, alone, asked) if alone else 0


def train(corpus: _text.Corpus, asked: argparse.Namespace, shards: int = 1) -> list[float]:
    """The loss before each step, in nats per character, of a model in so many shards, one for each process."""
    config = Config(corpus.vocabulary)
    model: Any = Transformer(
        config, initial_weights(config, SEED), dtype=getattr(torch, asked.dtype), device=torch.device("cpu")
    )
    share = slice(None)
    if shards > 1:
        mesh = init_device_mesh("cpu", (shards,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        share = slice(dist.get_rank(), None, shards)
    optimizer = Adafactor(model.named_parameters())  # after sharding, and that is all
    losses = []
    with release_gradients(model, optimizer) if asked.release else contextlib.nullcontext():
        for t in range(1, asked.steps + 1):
            batch = _text.batch(corpus.train, seed=SEED, step=t, size=BATCH, context=config.context)
            loss = model.loss(*(torch.from_numpy(codes[share]).long() for codes in batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(mean(loss.detach(), shards))
    return losses


def mean(loss: torch.Tensor, shards: int) -> float:
    """That of the shares of a batch, which are of one size."""
    if shards > 1:
        dist.all_reduce(loss)
    return float(loss) / shards


def report(sharded: list[float], alone: list[float], asked: argparse.Namespace) -> int:
    """Print both curves and how far they are apart; the exit status."""
    gaps = [abs(one - other) for one, other in zip(sharded, alone, strict=True)]
    for t in sorted({1, *range(10, asked.steps, 10), asked.steps}):
        print(f"step {t:4d}   sharded {sharded[t - 1]:.12f}   one process {alone[t - 1]:.12f}")
    limit = LIMITS[asked.dtype]
    print(f"largest deviation {max(gaps):.1e} nats per character, limit {limit:.0e}")
    if asked.plot is not None:
        plot(sharded, alone, gaps, asked.plot)
    return 0 if max(gaps) <= limit else 1


def plot(sharded: list[float], alone: list[float], gaps: list[float], to: Path) -> None:
    """Both curves, and below them how far they are apart, as a PNG."""
    from matplotlib.figure import Figure

    steps = range(1, len(gaps) + 1)
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    above.plot(steps, alone, linewidth=2.6, alpha=0.5, label="one process")
    above.plot(steps, sharded, linewidth=1.1, linestyle="--", label="FSDP2")
    above.set_ylabel("loss (nats per character)")
    above.legend(frameon=False)
    below.plot(steps, [gap or float("nan") for gap in gaps], ".", markersize=3)  # a log axis has no place for 0
    below.set_yscale("log")
    below.set_ylabel("difference")
    below.set_xlabel("training step")
    figure.savefig(to)
    print(f"curves in {to}")


def arguments() -> argparse.Namespace:
    """What stands on the command line."""
    parser = argparse.ArgumentParser(description="Train with FSDP2 and in one process, and compare the losses.")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dtype", choices=sorted(LIMITS), default="float64")
    parser.add_argument("--release", action="store_true", help="release gradients in the backward pass")
    parser.add_argument("--plot", type=Path, help="a PNG file to write")
    asked = parser.parse_args()
    if asked.steps < 1:
        parser.error(f"--steps must be at least 1, got {asked.steps}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
