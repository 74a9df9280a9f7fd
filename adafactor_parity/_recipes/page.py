"""Writes docs/recipes.md from the recipes."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from adafactor_spec import Recipe, literal, recipes, summary

from .._about import About, about

WIDTH = 120
HEAD = """# Recipes

<!-- Written by `make docs`. Change the docstrings in adafactor_spec/recipes, not this file. -->

For people who want to know what a published Adafactor computes. Each is a setting of one [recipe](recipe.md). Its name
stands for it wherever a recipe is taken, with the original's defaults: `recipe="t5x"`. Its function takes the
original's own arguments: `recipes.transformers(lr=1e-3, scale_parameter=False, relative_step=False)`.

`adafactor recipes NAME` prints the whole step of one as equations, `adafactor recipes A B` what differs between two and
what that does to a matrix. In Python these are `Recipe.describe()` and `Recipe.diff(other)`.

## All of them

`t` is 1 at the first update, `alpha` is the step size, `V` the second moment, `u = g / sqrt(V)` the update, clipped or
not; `eps(dtype)` is the machine epsilon of the parameter's dtype. Weight decay is `c` in `p - alpha u - c p`; what
stands after off is `c` with a weight decay `wd`. An lr "to be given" is one that the original has no default for."""


def page() -> str:
    """The page as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield HEAD
    for title, names in (("Originals", recipes.ORIGINALS), ("Settings in use", recipes.VARIANTS)):
        yield from ("", f"### {title}", "")
        rows = {name: summary(recipes.shown(name)) for name in names}
        links = ([f"[{name}](#{name})", *map(_cell, row.values())] for name, row in rows.items())
        yield from _table(["recipe", *next(iter(rows.values()))], links)
    for name in recipes.NAMES:
        yield from _section(about(name))
    yield ""


def _section(of: About) -> Iterator[str]:
    yield from ("", f"## {of.name}", "", _filled(of.what))
    for note in of.notes:
        yield from ("", _filled(note))
    yield ""
    if of.refused:
        yield from (_filled(f"The defaults alone are refused, so this is one setting of it. {of.refused}"), "")
    changed = recipes.shown(of.name).diff(Recipe())
    if changed:
        pairs = (
            [f"`{field}`", _code(literal(mine)), _code(literal(theirs))] for field, (mine, theirs) in changed.items()
        )
        yield from _table(["field", of.name, "paper"], pairs)
    else:
        yield "No field differs from `paper`." if of.name != "paper" else "Its fields are the defaults of `Recipe`."
    yield from ("", _filled(f"Source: {of.source}"))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
