"""The command `adafactor recipes`: all recipes, one in full, or what differs between two. It needs no framework."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from adafactor_spec import recipes, summary
from adafactor_spec.errors import nearest

from .._about import about
from .._output import printable, printing, replace_files
from ..errors import UsageError, wrong
from .difference import Difference, difference


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's parser to those of the others."""
    parser = commands.add_parser(
        "recipes",
        allow_abbrev=False,
        help="show the named recipes: all of them, one in full, or what differs between two",
        description="Without a name: a table of all recipes. With one: its step as equations, its arguments, its "
        "source. With two: the fields that differ, and what that does to a sample matrix in 100 steps.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a recipe, as in the table; two to compare them")
    parser.add_argument("--plot", metavar="FILE.png", help="with two names: draw what the difference does")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else to standard output")
    parser.add_argument("--markdown", action="store_true", help="print docs/recipes.md")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print what was asked for; returns the exit status. Raises UsageError for a wrong argument."""
    _check(parsed)
    found = _compared(*parsed.names) if len(parsed.names) == 2 else None
    plot = _draw(found, Path(parsed.plot)) if found is not None and parsed.plot is not None else None
    with printing():
        if parsed.markdown:
            from .page import page

            print(page(), end="")
        elif parsed.json:
            print(json.dumps(_plain(parsed.names, found), allow_nan=False))
        else:
            _show(parsed.names, found)
            if plot is not None:
                print(f"Plot: {printable(plot)}")
    return 0


def _show(names: list[str], found: Difference | None) -> None:
    from . import tables

    if found is not None:
        tables.show_two(found)
    elif names:
        tables.show_one(names[0])
    else:
        tables.show_all()


def _check(parsed: argparse.Namespace) -> None:
    if len(parsed.names) > 2:
        raise wrong("NAME", "given at most twice", " ".join(parsed.names), "Compare two at a time.")
    for name in parsed.names:
        if name not in recipes.NAMES:
            remedy = nearest(name.lower().replace("-", "_"), recipes.NAMES) or "Without a name all of them are listed."
            raise wrong("NAME", "one of those that `adafactor recipes` lists", name, remedy)
    if parsed.markdown and (parsed.names or parsed.json):
        beside = " ".join([*parsed.names, *(["--json"] if parsed.json else [])])
        raise wrong("--markdown", "given alone", f"--markdown {beside}", "Leave the others out.")
    if parsed.plot is not None:
        if len(parsed.names) != 2:
            raise wrong("--plot", "given with two names", f"{len(parsed.names)} of them", "Name the two to compare.")
        if Path(parsed.plot).suffix.lower() != ".png":
            remedy = f"Write {parsed.plot}.png." if Path(parsed.plot).name else "Name one."
            raise wrong("--plot", "a file name that ends in .png", parsed.plot, remedy)


def _compared(first: str, second: str) -> Difference:
    try:
        return difference(first, second)
    except ValueError as error:  # a recipe can refuse the sample matrix, as it would in training
        raise UsageError(str(error)) from error


def _draw(found: Difference, file: Path) -> Path:
    from .difference_plot import draw

    target = Path(os.path.realpath(file))  # what a link leads to is replaced, and not the link
    try:
        if target.exists() and not target.is_file():
            raise wrong("--plot", "a file to write to", str(file), "It is there and no plain file: name another.")
        replace_files(target.parent, {target.name: draw(found)})
    except OSError as error:
        raise wrong("--plot", "a file to write to", str(file), f"{error.strerror}: name another.") from None
    return file


def _plain(names: list[str], found: Difference | None) -> dict[str, Any]:
    if found is not None:
        return found.as_dict()
    if names:
        return about(names[0]).as_dict()
    groups = {"originals": recipes.ORIGINALS, "variants": recipes.VARIANTS}
    return {group: {name: summary(recipes.shown(name)) for name in found} for group, found in groups.items()}
