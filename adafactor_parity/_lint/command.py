"""The command `adafactor lint`: reads the call and prints what was found out about it."""

import argparse
import io
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from .._output import printing
from ..errors import wrong
from .call import LONGEST
from .code import WIDTH, expression
from .constructors import usual_name
from .lint import Lint, lint

REPRODUCED, REFUSED = 0, 1


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `lint` to the command line."""
    parser = commands.add_parser(
        "lint",
        allow_abbrev=False,
        help="say what another library's Adafactor call does, and the equivalent call here",
        description="Read a constructor call in an original's words, without executing it: what it does or why it "
        "is refused, which of its arguments have no effect, and the equivalent call in JAX and in torch. Exit status: "
        "0 if the call is reproduced, 1 if the original refuses it or it is not reproduced here, 2 if the text cannot "
        "be read.",
        epilog="example: adafactor lint 'transformers.Adafactor(model.parameters(), lr=1e-4, relative_step=False)'",
    )
    add = parser.add_argument
    add("text", metavar="CALL", help="the call, in quotes; - reads it from standard input")
    add(
        "--from",
        dest="original",
        metavar="NAME",
        help="the original, where the name that is called is shared by several",
    )
    add("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Lint the call and print what was found; returns the exit status."""
    found = lint(_text(parsed.text), original=parsed.original)
    with printing():
        print(json.dumps(found.as_dict(), allow_nan=False) if parsed.json else "\n".join(_lines(found)))
    return REPRODUCED if found.reproduced else REFUSED


def _text(argument: str) -> str:
    if argument != "-":
        return argument
    if sys.stdin is None:  # so Python says that it was started with a closed one
        raise wrong("standard input", "open", "a closed one", "Give the call itself in place of -.")
    try:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # whatever the locale says
        return sys.stdin.read(LONGEST + 1)  # one more than is taken, however much there is
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start:,}"
        raise wrong("standard input", "text in UTF-8", reason, "Save it as UTF-8.") from None
    except OSError as error:
        raise wrong(
            "standard input", "readable", error.strerror or str(error), "Give the call in place of -."
        ) from None


def _lines(found: Lint) -> Iterator[str]:
    usual = usual_name(found.recipe_name)
    which = usual if found.constructor == usual else f"{found.constructor}, read as {usual}"
    yield f"{which}: {found.verdict if found.reproduced else found.verdict.upper()}"
    if found.refused is not None:
        yield from ("", *_wrap(found.refused))
    yield from _values("No effect, whatever the value", found.without_effect)
    yield from _values("The default anyway", found.as_by_default)
    if found.remarks:
        yield ""
        for remark in found.remarks:
            yield from _wrap(remark)
    if found.recipe is not None:
        yield from ("", "What it does", *textwrap.indent(found.recipe.describe(), "  ").splitlines())
    for framework, code in found.code.items():
        yield from ("", f"In {_FRAMEWORKS[framework]}", "", str(code))
    for quirk in found.quirks:
        yield from ("", *_wrap(quirk))
    if found.source:
        yield from ("", f"Source: {found.source}")


_FRAMEWORKS = {"jax": "JAX", "torch": "torch"}


def _values(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    if values:
        yield from ("", title, *(f"  {name} = {expression(value)}" for name, value in values.items()))


def _wrap(text: str, indent: str = "") -> list[str]:
    keep = {"break_long_words": False, "break_on_hyphens": False}
    wrap = textwrap.TextWrapper(WIDTH, initial_indent=indent, subsequent_indent=indent, **keep)  # type: ignore[arg-type]
    return [line for part in text.splitlines() for line in wrap.wrap(part)]
