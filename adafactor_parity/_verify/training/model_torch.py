"""The character transformer in torch, with the parameter names of `model.py`. `model_jax.py` computes the same."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import NORM_EPSILON, Config, Weights


class Transformer(nn.Module):
    """Pre-norm transformer over characters; its parameters are those of `weights`, by name."""

    def __init__(self, config: Config, weights: Weights, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Parameter(torch.empty(config.vocabulary, width))
        self.position = nn.Parameter(torch.empty(config.context, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = Norm(width)
        self.unembed = nn.Parameter(torch.empty(width, config.vocabulary))
        self.to(dtype=dtype, device=device)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of the next character, `[batch, context, vocabulary]`, from codes `[batch, context]`."""
        x = F.embedding(inputs, self.embed) + self.position[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.norm(x) @ self.unembed
        return scores

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per character."""
        return F.cross_entropy(self(inputs).flatten(0, 1), targets.flatten())


class Block(nn.Module):
    """Attention over the past, then two layers; each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = Norm(width)
        self.qkv = nn.Parameter(torch.empty(3, width, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.norm2 = Norm(width)
        self.up = nn.Parameter(torch.empty(width, 4 * width))
        self.down = nn.Parameter(torch.empty(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, context, width]` to the same."""
        x = x + self._attention(self.norm1(x))
        hidden = self.norm2(x) @ self.up
        return x + F.gelu(hidden, approximate="tanh") @ self.down

    def _attention(self, x: Tensor) -> Tensor:
        batch, context, width = x.shape

        def split(y: Tensor) -> Tensor:  # [batch, heads, context, width / heads]
            return y.view(batch, context, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = (split(x @ matrix) for matrix in self.qkv)
        scores = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5
        future = torch.ones(context, context, dtype=torch.bool, device=x.device).triu(1)
        weights = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
        return (weights @ value).transpose(1, 2).reshape(batch, context, width) @ self.out


class Norm(nn.Module):
    """Layer normalisation with a scale and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Each vector of the last axis, with mean 0 and variance 1 before scale and bias."""
        return F.layer_norm(x, self.scale.shape, self.scale, self.bias, NORM_EPSILON)
