"""What the tests of released gradients train, and whether torch's clipping is guarded."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adafactor_torch import Adafactor

WIDTH, WORDS, LAYERS = 16, 12, 6


class Net(torch.nn.Module):
    """Six layers and biases of one shape, a matrix of one block and one of several, an embedding that is also the
    output, and a layer that takes part in every other step only."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.sometimes = torch.nn.Linear(WIDTH, WIDTH)
        self.wide = torch.nn.ModuleList([torch.nn.Linear(WIDTH, 600), torch.nn.Linear(600, 500, bias=False)])
        self.narrow = torch.nn.ModuleList([torch.nn.Linear(500, 80), torch.nn.Linear(80, WIDTH)])
        self.output = torch.nn.Linear(WIDTH, WORDS)
        self.output.weight = self.words.weight
        self.to(dtype)

    def forward(self, words: Tensor, t: int) -> Tensor:
        x = self.words(words)
        for layer in [*self.layers, *([self.sometimes] if t % 2 else []), *self.wide, *self.narrow]:
            x = torch.tanh(layer(x))
        return self.output(x)

    def loss(self, t: int) -> Tensor:
        words = torch.randint(WORDS, (9,), generator=torch.Generator().manual_seed(t))
        return functional.cross_entropy(self(words[:-1], t).float(), words[1:])


def small(**options: Any) -> tuple[torch.nn.Linear, Adafactor]:
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 2)
    return model, Adafactor(model.named_parameters(), lr=1e-2, **options)


def backward(model: torch.nn.Module) -> None:
    model(torch.ones(4, 3)).square().sum().backward()


def guarded() -> bool:
    return any("adafactor" in cell.cell_contents.__code__.co_filename for cell in cells())


def cells() -> Iterator[Any]:
    for name in ("clip_grad_norm_", "clip_grads_with_norm_", "clip_grad_value_"):
        yield from getattr(torch.nn.utils, name).__closure__
