"""What is stepped: lists of parameter shapes. `quick` makes them small and keeps their variety."""

from collections.abc import Callable

Shape = tuple[int, ...]


def transformer(quick: bool = False) -> list[Shape]:
    """An embedding and transformer blocks: 108 M parameters in 99 tensors, nearly all of them in large matrices."""
    vocabulary, width, blocks = (512, 64, 2) if quick else (32_000, 1024, 6)
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


WORKLOADS: dict[str, Callable[[bool], list[Shape]]] = {
    "transformer": transformer,
    "convnet": convnet,
    "small": small,
}


def _convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
    return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # the kernel, and the norm behind it
