"""What XLA makes of a step: how often it compiles, for how long, and what the compiled program allocates."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"  # one event for each program that XLA compiles

Tree = Any


@dataclass(kw_only=True)
class Compilations:
    """How many programs were compiled, and the seconds that this took in XLA."""

    number: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def counted(found: Compilations) -> Iterator[None]:
    """Add to `found` what is compiled inside."""

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == BACKEND_COMPILE:
            found.number += 1
            found.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Everything is compiled anew inside, also where the user keeps compiled programs on disk."""
    settings: Any = jax.config  # whose attributes mypy does not know
    before = settings.jax_enable_compilation_cache
    settings.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        settings.update("jax_enable_compilation_cache", before)


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """Bytes of a compiled program: its temporaries, and its outputs that take the place of donated inputs.

    None on a platform that does not say.
    """

    temporary_bytes: int | None
    aliased_bytes: int | None


def allocated(step: Any, *arguments: Tree) -> Allocated:
    """What a jitted `step` allocates, by XLA's memory analysis. One that has run is not compiled again."""
    found = step.lower(*arguments).compile().memory_analysis()
    return Allocated(
        temporary_bytes=getattr(found, "temp_size_in_bytes", None),
        aliased_bytes=getattr(found, "alias_size_in_bytes", None),
    )


def tree_bytes(tree: Tree) -> int:
    """Bytes of all arrays in a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
