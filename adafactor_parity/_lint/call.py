"""Reads a constructor call from text with `ast`, and its arguments as values. Nothing is executed or imported."""

import ast
import inspect
import math
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adafactor_spec import dtypes

from ..errors import UsageError, wrong
from .constructors import brief, dotted, is_known

LONGEST = 100_000  # characters of a text; a call with a long map of axes has a few thousand
DEEPEST = 50  # levels of Python's syntax; parameter groups written out have about 15
_INFINITY = ("math.inf", "np.inf", "numpy.inf", "jnp.inf", "torch.inf")
_MODULES_OF_DTYPES = ("torch", "jnp", "jax.numpy", "np", "numpy", "tf", "tensorflow", "ml_dtypes")
_DTYPES = {name: name for name in (*dtypes.NAMES, "int8", "int16")} | {"half": "float16", "double": "float64"}
# T5X's own names for the roles of axes, and its ready-made rules, as recipes.t5x calls them.
_ROLES = ("ROW", "COLUMN", "BATCH", "NONE")
_RULES = {"adafactor.standard_logical_factor_rules": "standard", "adafactor_utils.logical_factor_rules": "moe"}
_MAY_BE_SCHEDULES = ("lr", "learning_rate", "learning_rate_fn", "weight_decay_rate")


@dataclass(frozen=True)
class Call:
    """What was read.

    Attributes:
        text: the source.
        function: what is called.
        positional, keywords: the arguments, not looked at yet.
    """

    text: str
    function: ast.expr
    positional: list[ast.expr]
    keywords: dict[str, ast.expr]

    @property
    def has_groups(self) -> bool:
        """Whether the parameters are written out as groups with options of their own."""
        params = self.keywords.get("params", self.positional[0] if self.positional else None)
        if not isinstance(params, ast.List | ast.Tuple | ast.ListComp):
            return False
        return any(_names_in(node) - {"params"} for node in ast.walk(params))

    def source(self, node: ast.expr) -> str:
        """The text of a part, at most 60 characters of it."""
        return brief(ast.get_source_segment(self.text, node) or ast.unparse(node))


def _names_in(node: ast.AST) -> set[str]:
    """The keys of a dict, {...} or dict(...), as far as they are written out."""
    if isinstance(node, ast.Dict):
        return {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and dotted(node.func) == "dict":
        return {keyword.arg for keyword in node.keywords if keyword.arg}
    return set()


class Unbound(TypeError):
    """The arguments do not fit the constructor: what Python itself would refuse."""


def read(text: str) -> Call:
    """The one call in `text`, alone or assigned to something.

    Raises:
        UsageError: it is not Python, or not that.
    """
    if not isinstance(text, str):
        raise wrong("text", "a string", type(text), "Give the source of a call, in quotes.")
    if len(text) > LONGEST:
        must = f"one call of at most {LONGEST:,} characters"
        raise UsageError(f"The text must be {must}, got {len(text):,}. Give the call alone.")
    # What a file may have around and between its lines: a byte order mark, and the line ends of other systems.
    text = textwrap.dedent(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not text:
        raise UsageError("The text is empty. Give a call such as transformers.Adafactor(model.parameters(), lr=1e-3).")
    statements = _parsed(text)
    if len(statements) != 1:
        raise UsageError(f"The text must be one call, got {len(statements)} statements. Give the call alone.")
    node = getattr(statements[0], "value", None) if isinstance(statements[0], _HOLDERS) else None
    if isinstance(node, ast.Tuple) and len(node.elts) == 1:  # copied with the comma that followed it
        (node,) = node.elts
    if not isinstance(node, ast.Call):
        remedy = "It is a notebook: copy the call from its cell." if '"nbformat"' in text else "Write name(arguments)."
        raise UsageError(f"The text must be a call, got {brief(text)!r}. {remedy}")
    for inner in ast.walk(node):
        within = isinstance(inner, ast.Call) and inner is not node and is_known(dotted(inner.func))
        if within and not is_known(dotted(node.func)):
            outer, call = brief(ast.unparse(node.func)), ast.get_source_segment(text, inner) or ""
            call = brief(call, 1000)
            raise UsageError(f"{outer} is not a constructor known here, but a call in it is. Give it alone: {call}")
    return Call(text, node.func, node.args, _keywords(node))


_HOLDERS = (ast.Expr, ast.Assign, ast.AnnAssign)


def _parsed(text: str) -> list[ast.stmt]:
    """The statements of the text, nested so little that it is safe to follow them with functions that call themselves.

    Raises:
        UsageError: it is not Python, or nested deeper than that.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the text, such as of "\\d" in a string: it is another's
            tree = ast.parse(text)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno and "\n" in text else ""
        raise UsageError(f"The text is not Python: {where}{error.msg.rstrip('?')}.") from None
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise UsageError(f"The text is not Python: {str(error).rstrip('.')}.") from None
    except (RecursionError, MemoryError):  # what Python's parser raises where it gives up
        raise _too_deep() from None
    if any(isinstance(node, ast.Constant) and _is_too_large(node.value) for node in ast.walk(tree)):
        raise UsageError(f"The text must have whole numbers below {sys.float_info.max:.0e}, got a larger one.")
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise _too_deep()
    return tree.body


def _is_too_large(value: object) -> bool:
    # No original takes such a number, and Python cannot print one of thousands of digits.
    return isinstance(value, int) and value.bit_length() > sys.float_info.max_exp


def _too_deep() -> UsageError:
    return UsageError(f"The text must be nested at most {DEEPEST} deep, got more. Give a call with plain arguments.")


def _keywords(node: ast.Call) -> dict[str, ast.expr]:
    for argument in node.args:
        if isinstance(argument, ast.Starred):
            raise UsageError(f"*{brief(ast.unparse(argument.value))} must be written out. The text is not executed.")
    keywords: dict[str, ast.expr] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise UsageError(f"**{brief(ast.unparse(keyword.value))} must be written out. The text is not executed.")
        if keyword.arg in keywords:
            raise UsageError(f"{brief(keyword.arg)} must be given once, got it twice. Drop one of them.")
        keywords[keyword.arg] = keyword.value
    return keywords


def bind(call: Call, function: Callable[..., Any], takes_params: bool) -> dict[str, Any]:
    """The arguments under the names of the recipe function `function`, as values.

    Raises:
        UsageError: some are not literals; all of them are named.
        Unbound: the constructor has no such arguments.
    """
    positional, keywords = list(call.positional), dict(call.keywords)
    if takes_params:
        _drop_params(call, positional, keywords)
    parameters = inspect.signature(function).parameters
    by_position = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(positional) > len(by_position):
        beside = " beside the parameters" if takes_params else ""
        raise Unbound(f"it takes {len(by_position)} arguments by position{beside}, got {len(positional)}.")
    nodes = dict(zip(by_position, positional, strict=False))
    for name in keywords:
        if name in nodes:
            raise Unbound(f"{name} is given twice, by position as {call.source(nodes[name])} and by name.")
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            function(**{name: None})  # refuses the name in its own words
    nodes.update(keywords)
    values, refused = {}, []
    for name, node in nodes.items():
        try:
            values[name] = literal(node)
        except _NotLiteral as error:
            refused.append(f"{name} must be a literal, got {call.source(error.node)}. {_remedy(name, error.node)}")
    if refused:
        raise UsageError("\n".join(refused))
    return values


def _drop_params(call: Call, positional: list[ast.expr], keywords: dict[str, ast.expr]) -> None:
    if "params" in keywords:
        if positional:
            raise Unbound("params is given twice, by position and by name.")
        del keywords["params"]
    elif positional:
        first = positional.pop(0)
        if isinstance(first, ast.Constant | ast.UnaryOp):
            source = call.source(first)
            raise UsageError(f"params must be the model's parameters, got {source}. Give {source} by its name.")


class _NotLiteral(ValueError):
    def __init__(self, node: ast.expr) -> None:
        super().__init__()
        self.node = node


def literal(node: ast.expr) -> Any:
    """The value of a number, string, bool, None, infinity or dtype, or of a tuple, list or dict of these."""
    name = dotted(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = literal(node.operand)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.Tuple):
        return tuple(literal(item) for item in node.elts)
    elif isinstance(node, ast.List):
        return [literal(item) for item in node.elts]
    elif isinstance(node, ast.Dict):
        if all(isinstance(key, ast.Constant) for key in node.keys):
            return {literal(k): literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    elif isinstance(node, ast.Call):
        if dotted(node.func) == "float" and len(node.args) == 1 and not node.keywords:
            return _number(node)
        if (dotted(node.func) or "").rpartition(".")[2] == "HParamMap":
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "rules")]
            if len(given) == len(node.args) + len(node.keywords) == 1:
                return literal(given[0])
        rules = dotted(node.func)
        if rules is not None and not node.args and not node.keywords:
            for known, value in _RULES.items():
                if f".{rules}".endswith(f".{known}"):
                    return value
    elif name in _INFINITY:
        return math.inf
    elif name is not None:
        module, _, last = name.rpartition(".")
        if module in _MODULES_OF_DTYPES and last in _DTYPES:
            return _DTYPES[last]
        if name == "torch.float":
            return "float32"
        if f".{module}".endswith(".FactorDim") and last in _ROLES:
            return last
        if f".{name}".endswith((".HEURISTIC_RULE", ".HeuristicRule.token")):
            return "HEURISTIC_RULE"
    raise _NotLiteral(node)


def _number(node: ast.Call) -> float:
    """float("inf"), float("1e-3"), float(1)."""
    value = literal(node.args[0])
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _NotLiteral(node) from None


def _remedy(name: str, node: ast.expr) -> str:
    if name == "weight_decay_mask":
        return "Leave it out here and pass it to adafactor_jax.adafactor(..., weight_decay_mask=...)."
    if isinstance(node, ast.Call) and (dotted(node.func) or "").endswith("tensor"):
        return "Give the number that it holds."
    if name in _MAY_BE_SCHEDULES and isinstance(node, ast.Call | ast.Lambda):
        return (
            "Put a number in its place here, and where it is a schedule give that to the recipe, which calls it as the "
            f"original does: recipes.<name>({name}=schedule, ...)."
        )
    return "Put its value in its place."
