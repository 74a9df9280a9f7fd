"""Trains a small transformer with FSDP2, and shows that its loss curve is that of one process.

On a CPU, from the root of the repository, in the environment that `make` makes:

    .venv/bin/torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 4 examples/train_fsdp2.py

`--steps 100`, `--dtype float32`, `--release` (gradients are released in the backward pass) and `--plot curves.png` are
further arguments. Every process holds a part of each parameter and of its state, and learns from its part of a batch.
Then the first process trains the same model alone, as plain tensors, and the losses of both runs are compared.

In float64 they differ by rounding errors, which grow while a model learns: 1e-9 is allowed in 100 steps, 1e-3 in
float32. If the losses are farther apart, the exit status is 1.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from adafactor_torch import Adafactor, release_gradients

BATCH, CONTEXT, WIDTH, HEADS, LAYERS = 16, 64, 64, 4, 2
LIMITS = {"float64": 1e-9, "float32": 1e-3}


class Transformer(nn.Module):
    """Predicts the next character."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        # Without biases: the gradient of a bias of attention keys is zero but for rounding errors, and Adafactor
        # divides a gradient by its own size.
        layer: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True, "bias": False}
        self.embed = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **layer) for _ in range(LAYERS))
        self.unembed = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """The mean loss, in nats per character, of `codes` `[batch, CONTEXT + 1]`, each predicted from those before."""
        inputs, targets = codes[:, :-1], codes[:, 1:]
        x = self.embed(inputs) + self.position.weight
        future = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=future)
        return F.cross_entropy(self.unembed(x).flatten(0, 1), targets.flatten())


def main() -> int:
    """Train twice and compare; the exit status."""
    asked = arguments()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    text = "\n".join(topics[name] for name in sorted(topics))  # Python's own help
    alphabet = {character: code for code, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text])
    try:
        sharded = train(codes, asked, shards=dist.get_world_size())
        alone = train(codes, asked) if dist.get_rank() == 0 else []
        dist.barrier()  # the others wait for the first one
    finally:
        dist.destroy_process_group()
    return report(sharded, alone, asked) if alone else 0


def train(codes: Tensor, asked: argparse.Namespace, shards: int = 1) -> list[float]:
    """The loss before each step, in nats per character, of a model in so many shards, one for each process."""
    torch.manual_seed(0)  # the same weights and batches on every process and in both runs
    model: Any = Transformer(int(codes.max()) + 1).to(getattr(torch, asked.dtype))
    part = slice(None)
    if shards > 1:
        mesh = init_device_mesh("cpu", (shards,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        part = slice(dist.get_rank(), None, shards)
    optimizer = Adafactor(model.named_parameters())  # after sharding, and that is all
    losses = []
    with release_gradients(model, optimizer) if asked.release else contextlib.nullcontext():
        for _ in range(asked.steps):
            starts = torch.randint(len(codes) - CONTEXT, (BATCH, 1))
            loss = model(codes[starts + torch.arange(CONTEXT + 1)][part])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(mean(loss.detach(), shards))
    return losses


def mean(loss: torch.Tensor, shards: int) -> float:
    """The mean over the parts of a batch, which have one size."""
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
