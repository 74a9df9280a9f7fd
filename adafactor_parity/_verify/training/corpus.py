"""Reads the text that the transformer learns, turns it into character codes, and draws the batches."""

import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError

Codes = NDArray[np.int32]

DEFAULT_SOURCE = "pydoc_data.topics"
HELD_OUT = 0.1  # fraction of the characters, at the end of the text
MINIMUM = 1_000  # characters: a tenth of them must hold one window of 65 characters
MAXIMUM = 4_000_000  # characters: a run of 300 steps draws 307,200 of them; more would only cost memory
LARGEST_ALPHABET = 256  # so that the embedding of a text in Chinese does not dwarf the rest of the model


@dataclass(frozen=True)
class Corpus:
    """A text split into a part to learn from and a held-out part, both as codes in [0, vocabulary)."""

    source: str
    characters: int
    vocabulary: int
    train: Codes
    held_out: Codes

    @property
    def is_default(self) -> bool:
        """Whether this is the text that every Python carries."""
        return self.source == DEFAULT_SOURCE


def load(path: Path | None) -> Corpus:
    """The corpus of a UTF-8 file, or of `pydoc_data.topics` for None.

    Raises UsageError for a file that is missing, unreadable, empty, too short or not text.
    """
    return split(default_text(), DEFAULT_SOURCE) if path is None else split(read(path), path.name)


def default_text() -> str:
    """The topics of Python's own help, in alphabetical order."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def read(path: Path) -> str:
    """The first `MAXIMUM` characters of a text file."""
    got, text = str(path), ""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a folder, a pipe to wait for, a device that may never end
            problem = "which is not a regular file"
        else:
            with path.open(encoding="utf-8-sig") as file:
                text = file.read(MAXIMUM)
            problem = "which is empty" if not text else f"which has {len(text):,}" if len(text) < MINIMUM else ""
            problem = "which is binary (it holds NUL characters)" if "\0" in text else problem
    except UnicodeDecodeError as error:
        problem = f"which is not UTF-8 ({error.reason} at byte {error.start:,})"
    except OSError as error:
        problem = (
            "which does not exist"
            if isinstance(error, FileNotFoundError)
            else f"which cannot be read: {error.strerror}"
        )
    if problem:
        remedy = "Name a plain text file in UTF-8, or leave --text out to learn from Python's own help."
        must = f"--text must be a file of at least {MINIMUM:,} characters of text"
        raise UsageError(f"{must}, got {got!r}, {problem}. {remedy}")
    return text


def split(text: str, source: str) -> Corpus:
    """Codes by character; the last tenth is held out.

    The `LARGEST_ALPHABET - 1` most frequent characters have a code each; the others share the last one.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    found, inverse, counts = np.unique(points, return_inverse=True, return_counts=True)
    codes = np.arange(found.size)
    if found.size > LARGEST_ALPHABET:
        kept = np.sort(np.argsort(-counts, kind="stable")[: LARGEST_ALPHABET - 1])
        codes = np.full(found.size, LARGEST_ALPHABET - 1)
        codes[kept] = np.arange(kept.size)
    coded = codes[inverse].astype(np.int32)
    cut = coded.size - int(coded.size * HELD_OUT)
    return Corpus(source, len(text), int(codes.max()) + 1, coded[:cut], coded[cut:])


def batch(codes: Codes, *, seed: int, step: int, size: int, context: int) -> tuple[Codes, Codes]:
    """Inputs and targets of one step, each `[size, context]`; replays from seed and step alone."""
    starts = np.random.default_rng([seed, step]).integers(0, codes.size - context, size)
    windows = codes[starts[:, None] + np.arange(context + 1)]
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def windows(codes: Codes, *, count: int, context: int) -> tuple[Codes, Codes]:
    """At most `count` windows spread evenly over `codes`: inputs and targets, `[windows, context]`."""
    available = (codes.size - 1) // context
    starts = np.linspace(0, codes.size - context - 1, min(count, available)).astype(int)
    found = codes[starts[:, None] + np.arange(context + 1)]
    return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, 1:])


def unigram_entropy(codes: Codes) -> float:
    """Nats per character of the best model that knows how frequent each character is and nothing else."""
    counts = np.bincount(codes)
    share = counts[counts > 0] / codes.size
    return float((share * -np.log(share)).sum())
