"""What is stepped: lists of parameter shapes. `quick` makes them small and keeps their variety."""

from collections.abc import Callable

Shape = tuple[int, ...]
SHARDED = "torch_sharded"  # the framework whose workloads are the last two, where nothing else is asked for


def transformer(quick: bool = False) -> list[Shape]:
    """An embedding and transformer blocks: 108 M parameters in 99 tensors, nearly all of them in large matrices."""
    return _transformer(512, 64, 2) if quick else _transformer(32_000, 1024, 6)


def _transformer(vocabulary: int, width: int, blocks: int) -> list[Shape]:
    vector = (width,)
    attention = [(width, width), vector] * 4
    perceptron = [(width, 4 * width), (4 * width,), (4 * width, width), vector]
    norms = [vector] * 4
    return [(vocabulary, width), *(attention + perceptron + norms) * blocks, vector, vector]


def convnet(quick: bool = False) -> list[Shape]:
    """ResNet-50: 25.6 M parameters in 161 tensors, of convolution kernels, norms and the 1000-way head."""
    narrower, depths = (16, (1, 1, 1, 1)) if quick else (1, (3, 4, 6, 3))
    channels = 64 // narrower
    shapes: list[Shape] = [*_convolution(channels, 3, 7)]
    for stage, depth in enumerate(depths):
        middle = (64 << stage) // narrower
        for block in range(depth):
            shapes += [*_convolution(middle, channels, 1), *_convolution(middle, middle, 3)]
            shapes += _convolution(4 * middle, middle, 1)
            shapes += _convolution(4 * middle, channels, 1) if block == 0 else []
            channels = 4 * middle
    return [*shapes, (1000 // narrower, channels), (1000 // narrower,)]


def small(quick: bool = False) -> list[Shape]:
    """2,000 matrices of 64x64: 8.2 M parameters, where what counts is the cost of a tensor, not of an element."""
    return [(64, 64)] * (20 if quick else 2000)


def fifty(quick: bool = False) -> list[Shape]:
    """An embedding and three blocks of `transformer`: 70.6 M parameters in 50 tensors, the last norm without a bias."""
    return (_transformer(512, 64, 3) if quick else _transformer(32_000, 1024, 3))[:-1]


def tiny(quick: bool = False) -> list[Shape]:
    """36 matrices of 64x64 and 14 vectors: 0.15 M parameters in 50 tensors, where a step is little but messages."""
    side = 6 if quick else 64
    return [(side, side)] * 36 + [(side,)] * 14


WORKLOADS: dict[str, Callable[[bool], list[Shape]]] = {
    "transformer": transformer,
    "convnet": convnet,
    "small": small,
    "fifty": fifty,
    "tiny": tiny,
}


def usual(framework: str) -> tuple[str, ...]:
    """The workloads of a framework where none is named."""
    return ("fifty", "tiny") if framework == SHARDED else ("transformer", "convnet", "small")


def _convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
    return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # the kernel, and the norm behind it
