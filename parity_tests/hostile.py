"""Hostile values for every public argument, and the judge of what comes of them.

The fuzz (`test_fuzz_*.py`) accepts two outcomes only: the right result, or a refusal in the form of
`adafactor_spec.errors.refusal`. So every drawn value says what plain Python value it stands for, if any.
"""

import enum
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from adafactor_spec.errors import NotReproduced, OriginalRefuses

from .profiles import examples

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / name) for name in ("adafactor_spec", "adafactor_jax", "adafactor_torch", "adafactor_parity"))


def cases(few: int, share: int) -> settings:
    """The number of cases of one test: `few` by default, `share` in the profiles that draw many.

    The shares of all tests of the fuzz add up to more than 20,000.
    """
    # Not shrunk, which would take minutes: one drawn case is small.
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=examples(few, share), suppress_health_check=list(HealthCheck), phases=phases)


# ------------------------------------------------------------------------------------------------------------ values


class _Nothing(enum.Enum):
    NOTHING = "no plain value"


NOTHING: Final[Any] = _Nothing.NOTHING


class Hostile:
    """A value to be given to an argument.

    Attributes:
        label: what is printed of it: some values cannot print themselves.
        value: what is given.
        plain: the plain Python value that it stands for; `NOTHING` where it stands for none and must be refused.
        sure: whether it has to be taken for `plain`. Else it may be refused instead.
    """

    def __init__(self, label: str, value: Any, plain: Any = NOTHING, sure: bool = True) -> None:
        self.label, self.value, self.plain, self.sure = label, value, plain, sure

    def __repr__(self) -> str:
        return self.label


class Failing:
    """Everything that Python asks of it fails, its text too."""

    def _fails(self, *_: object) -> Any:
        raise RuntimeError("This object answers nothing.")

    __repr__ = __str__ = __eq__ = __bool__ = __hash__ = __len__ = __iter__ = __float__ = __int__ = __index__ = _fails
    __lt__ = __le__ = __gt__ = __ge__ = __format__ = __contains__ = __getitem__ = __array__ = _fails


class Everything:
    """Equal to everything, larger and smaller than everything, and true."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __eq__


class Numeric:
    """Turns into a number when it is asked to, and is none."""

    def __float__(self) -> float:
        return 0.5

    def __int__(self) -> int:
        return 1

    __index__ = __int__


class FloatOfOurs(float):
    """A float of another class, whose text is not that of a float."""

    def __repr__(self) -> str:
        return "<not a number>"


class IntOfOurs(enum.IntEnum):
    ONE = 1


class WordOfOurs(str, enum.Enum):  # noqa: UP042 (the text of a StrEnum is its value, of this its name)
    FLOOR = "floor"


# Around every boundary that a number has here: of signs, of float16, float32 and float64, of 32 and 64 bits.
FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 0.9, 0.999, 1e-3, 1e-8, 1e-30, 1e-37, 9e-38, 1e-45, 5e-324, 1 - 2.0**-24, 1 - 2.0**-53,
    1.0000001, 2.0, 1e4, 65504.0, 1e6, 1.5e18, 3.4028235e38, 3.5e38, 1.7976931348623157e308, float("inf"),
    float("-inf"), float("nan"),
)  # fmt: skip
INTS = (
    0, 1, -1, 2, 3, 128, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**400, -(10**400),
)  # fmt: skip


def _as(kind: Any) -> Callable[[Any], Hostile]:
    """A number as a NumPy scalar of a kind; it stands for what that can hold."""

    def make(number: Any) -> Hostile:
        value = kind(number)
        return Hostile(f"{kind.__name__}({number!r})", value, value.item())

    return make


def _array(make: Callable[[Any], Any], name: str) -> Callable[[Any], Hostile]:
    def one(number: Any) -> Hostile:
        value = make(number)
        plain = value.item()
        # A whole number in an array of others is one for whoever wants a number, and none for who wants whole ones.
        whole = isinstance(plain, float) and plain.is_integer()
        return Hostile(f"{name}({number!r})", value, plain, sure=not whole)

    return one


def _like(make: Callable[[Any], Any], name: str, stands: bool = True) -> Callable[[Any], Hostile]:
    """What looks like the number and is none: it may be refused."""
    return lambda number: Hostile(f"{name}({number!r})", make(number), number if stands else NOTHING, sure=False)


def _longdouble(number: Any) -> Hostile:
    value = np.longdouble(number)
    return Hostile(f"np.longdouble({number!r})", value, float(value), sure=False)


# How a number can be given. One that a kind cannot hold is given as it is.
NUMBERS: dict[str, Callable[[Any], Hostile]] = {
    "plain": lambda number: Hostile(repr(number), number, number),
    **{kind.__name__: _as(kind) for kind in (np.float64, np.float32, np.float16, np.int64, np.int8, np.uint64)},
    "numpy": _array(np.asarray, "np.asarray"),
    "numpy float32": _array(lambda number: np.asarray(number, np.float32), "np.float32 array of "),
    "jax": _array(jnp.asarray, "jnp.asarray"),
    "jax bfloat16": _array(lambda number: jnp.asarray(number, jnp.bfloat16), "jnp.bfloat16 array of "),
}
LIKE_NUMBERS: dict[str, Callable[[Any], Hostile]] = {
    "fraction": _like(Fraction, "Fraction"),
    "decimal": _like(Decimal, "Decimal"),
    "complex": _like(complex, "complex"),
    "str": _like(str, "str"),
    "bytes": _like(lambda number: str(number).encode(), "bytes", stands=False),
    "list": _like(lambda number: [number], "list"),
    "tuple": _like(lambda number: (number,), "tuple"),
    "torch": _like(torch.tensor, "torch.tensor"),
    "torch parameter": _like(lambda x: torch.nn.Parameter(torch.tensor(float(x))), "torch.nn.Parameter"),
    "torch meta": _like(lambda x: torch.tensor(float(x), device="meta"), "torch.tensor on meta of ", stands=False),
    "one axis": _like(lambda number: np.asarray([number]), "np.asarray of a list of "),
    "one axis, jax": _like(lambda number: jnp.asarray([number]), "jnp.asarray of a list of "),
    "object array": _like(lambda number: np.asarray(number, object), "np.asarray of the object "),
    "timedelta": _like(lambda number: np.timedelta64(int(number), "s"), "np.timedelta64"),
    "longdouble": _longdouble,
    "float of ours": _like(FloatOfOurs, "FloatOfOurs"),
}


def _nested(depth: int) -> Any:
    value: Any = 0.5
    for _ in range(depth):
        value = [value]
    return value


def _raises(t: Any) -> Any:
    raise RuntimeError("A function of the user fails.")


# What stands for nothing. Made anew for every case, as some of it can be used up or changed.
OTHERS: dict[str, Callable[[], Any]] = {
    "Failing()": Failing,
    "Everything()": Everything,
    "Numeric()": Numeric,
    "object()": object,
    "...": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "float": lambda: float,
    "re": lambda: re,
    "a generator": lambda: (x for x in (0.5,)),
    "range(3)": lambda: range(3),
    "set": lambda: {0.5},
    "{}": dict,
    "{'kind': 'constant'}": lambda: {"kind": "constant"},
    "[]": list,
    "()": tuple,
    "a list nested 3,000 deep": lambda: _nested(3000),
    "a list of a million": lambda: [0.5] * 1_000_000,
    "a long string": lambda: "x" * 1_000_000,
    "np.zeros(0)": lambda: np.zeros(0),
    "np.zeros((2, 2))": lambda: np.zeros((2, 2)),
    "np.ones(3)": lambda: np.ones(3),
    "np.array('floor')": lambda: np.array("floor"),
    "np.array(None)": lambda: np.array(None),
    "np.datetime64": lambda: np.datetime64("2020-01-01"),
    "np.void": lambda: np.void(b"12345678"),
    "jnp.zeros((2,))": lambda: jnp.zeros(2),
    "torch.ones(2)": lambda: torch.ones(2),
    "torch.ones(2, 2).to_sparse()": lambda: torch.ones(2, 2).to_sparse(),
    "torch.tensor(True)": lambda: torch.tensor(True),
    "torch.int8": lambda: torch.int8,
    "b'floor'": lambda: b"floor",
    "'\\ud800'": lambda: "\ud800",
    "'\\0'": lambda: "\0",
    "'\\n'": lambda: "\n",
    "Path": lambda: Path("."),
    "a function that raises": lambda: _raises,
    "a function of nothing": lambda: lambda: 0.5,
    "a function that gives text": lambda: lambda t: "0.5",
    "a function that gives None": lambda: lambda t: None,
    "a function that gives a pair": lambda: lambda t: (t, t),
    "a function that gives NaN": lambda: lambda t: float("nan"),
    "a function that gives -1": lambda: lambda t: -1.0,
    "a function that gives 10**400": lambda: lambda t: 10**400,
}


def numbers(of: Sequence[Any] = (*FLOATS, *INTS), kinds: Iterable[str] = (*NUMBERS, *LIKE_NUMBERS)) -> Any:
    """Numbers in every kind of container."""
    known = NUMBERS | LIKE_NUMBERS

    def make(pair: tuple[Any, str]) -> Hostile:
        number, kind = pair
        try:
            with np.errstate(all="ignore"):
                return known[kind](number)
        except (TypeError, ValueError, OverflowError, ArithmeticError):  # the kind cannot hold it
            return NUMBERS["plain"](number)

    return st.tuples(st.sampled_from(list(of)), st.sampled_from(list(kinds))).map(make)


def words(choices: Collection[Any]) -> Any:
    """The valid strings, and others near to them."""

    def spoil(pair: tuple[str, int]) -> Hostile:
        word, how = pair
        spoiled = [word + " ", word.upper(), word[:-1], word[::-1], word + "\0", " " + word, word + "s", word.title()]
        text = spoiled[how % len(spoiled)]
        return NUMBERS["plain"](text)

    given = [word for word in choices if isinstance(word, str) and word]
    valid = st.sampled_from([NUMBERS["plain"](word) for word in choices])
    return st.one_of(valid, st.tuples(st.sampled_from(given), st.integers(0, 7)).map(spoil)) if given else valid


CONSTANTS = st.sampled_from([NUMBERS["plain"](value) for value in (None, True, False, "")])
FLAGS = st.sampled_from([
    *(NUMBERS["plain"](value) for value in (True, False)),
    *(Hostile(f"np.bool_({value})", np.bool_(value), value) for value in (True, False)),
    *(Hostile(f"np.array({value})", np.array(value), value, sure=False) for value in (True, False)),
    *(Hostile(f"jnp.array({value})", jnp.array(value), value, sure=False) for value in (True, False)),
])  # fmt: skip


def _other(name: str) -> Hostile:
    value = OTHERS[name]()
    return Hostile(name, value, value if type(value) is str else NOTHING)


OTHER = st.sampled_from(list(OTHERS)).map(_other)
ANYTHING = st.one_of(OTHER, numbers(), CONSTANTS, words(("paper", "floor", "float32", "step")))


# ------------------------------------------------------------------------------------------------------------- judge

LONGEST = 2000  # characters of a message, however long what it was given is
FORM = re.compile(r"(?P<who>.+?) must be (?P<must>.+?), got (?P<got>.*)[.?]", re.DOTALL)
NO_SUCH_NAME = re.compile(r"(\w+\(\) has no argument|Recipe has no field|A parameter group has no) (?P<who>\S+) ")


def assert_in_form(error: Exception, about: Collection[str] = ()) -> None:
    """The error is a refusal: raised by our code, in its form, and of one of the arguments in question."""
    message, where = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
    assert type(error) in (ValueError, TypeError, NotReproduced, OriginalRefuses), type(error)
    assert where.startswith(OURS), f"raised in {where}: {message[:LONGEST]}"
    assert len(message) <= LONGEST, f"{len(message)} characters: {message[:200]}"
    found = FORM.fullmatch(message) or NO_SUCH_NAME.match(message)
    assert found, f"not in the form of a refusal: {message}"
    assert not about or any(re.search(rf"\b{re.escape(name)}\b", found["who"]) for name in about), message


def refusal_of(action: Callable[[], Any], about: Collection[str] = ()) -> tuple[Any, str | None]:
    """(what the action gives, None), or (None, the message of its refusal, which has been judged)."""
    try:
        return action(), None
    except (ValueError, TypeError) as error:
        assert_in_form(error, about)
        return None, str(error)
