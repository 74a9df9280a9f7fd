"""Decides which published Adafactor the name of a constructor means, such as `optim.Adafactor`."""

import ast
from dataclasses import dataclass

from adafactor_spec import recipes
from adafactor_spec.errors import nearest

from ..errors import UsageError, wrong

# What people write after an import: the whole path, and the aliases that are a habit. Of a name that stands twice the
# first one counts, and the others are mentioned.
_NAMES = {
    "adafactor_pytorch": ("adafactor.AdaFactor",),
    "adafactor_pytorch_parent": ("adafactor.AdaFactor",),
    "big_vision": ("big_vision.optax.scale_by_adafactor", "big_vision.scale_by_adafactor"),
    "colossalai": ("colossalai.nn.optimizer.Adafactor", "colossalai.nn.optimizer.adafactor.Adafactor"),
    "fairseq": ("fairseq.optim.adafactor.Adafactor",),
    "flax": ("flax.optim.Adafactor", "flax.optim.adafactor.Adafactor"),
    "keras": (
        "keras.optimizers.Adafactor",
        "tf.keras.optimizers.Adafactor",
        "tensorflow.keras.optimizers.Adafactor",
        "tf.optimizers.Adafactor",
    ),
    "mesh_tensorflow": ("mesh_tensorflow.optimize.AdafactorOptimizer", "mtf.optimize.AdafactorOptimizer"),
    "optax": ("optax.adafactor",),
    "praxis": ("praxis.optimizers.ShardedAdafactor",),
    "pytorch_optimizer": ("pytorch_optimizer.AdaFactor", "pytorch_optimizer.optimizer.adafactor.AdaFactor"),
    "t5x": ("t5x.adafactor.Adafactor", "adafactor.Adafactor"),
    "tensor2tensor": ("tensor2tensor.utils.adafactor.AdafactorOptimizer",),
    "timm": ("timm.optim.Adafactor", "timm.optim.adafactor.Adafactor"),
    "timm_big_vision": ("timm.optim.AdafactorBigVision", "timm.optim.adafactor_bv.AdafactorBigVision"),
    "torch": ("torch.optim.Adafactor", "optim.Adafactor"),
    "transformers": ("transformers.Adafactor", "transformers.optimization.Adafactor"),
}
_PAIRS = tuple((name, recipe) for recipe, names in _NAMES.items() for name in names)
_RECIPE_OF = dict(reversed(_PAIRS))
# Torch optimizers: the first argument, or `params`, is the parameters.
_TAKE_PARAMS = (
    "adafactor_pytorch",
    "adafactor_pytorch_parent",
    "colossalai",
    "fairseq",
    "kohya",
    "pytorch_optimizer",
    "timm",
    "timm_big_vision",
    "torch",
    "transformers",
)
_OTHERS = {
    "adafactor_jax.adafactor": "It is this project's own: its arguments are the recipe's fields.",
    "adafactor_torch.Adafactor": "It is this project's own: its arguments are the recipe's fields.",
    "praxis.optimizers.Adafactor": "It passes its arguments on to optax.adafactor: lint that call.",
    "fairseq.optim.adafactor.FairseqAdafactor": "It reads its options from a command line: write them as the "
    "arguments of fairseq.optim.adafactor.Adafactor.",
    "colossalai.nn.optimizer.DistributedAdaFactor": "It adds up over a tensor-parallel group and has no recipe here. "
    "On one device it is --from colossalai.",
}


@dataclass(frozen=True)
class Constructor:
    """The original that a call means.

    Attributes:
        recipe: its name in `adafactor_spec.recipes`.
        takes_params: its first argument, or `params`, is the parameters, which a recipe has not.
        others: further originals that a name as short as this could mean.
    """

    recipe: str
    takes_params: bool
    others: tuple[str, ...] = ()


def usual_name(recipe: str) -> str:
    """How a call of this original is usually written: `transformers.Adafactor`."""
    return _NAMES[recipe][0] if recipe in _NAMES else f"recipes.{recipe}"


def find(function: ast.expr, original: str | None) -> Constructor:
    """The original that is called, or the one that the user names in `original`.

    Raises:
        UsageError: there is none of that name, or several.
    """
    name = dotted(function)
    if original is not None:
        if original not in recipes.ORIGINALS:
            remedy = nearest(original, recipes.ORIGINALS) or f"They are {', '.join(recipes.ORIGINALS)}."
            raise wrong("--from", "the name of an original", original, remedy)
        return Constructor(original, original in _TAKE_PARAMS and not _is_ours(name, original))
    if name is None:
        raise UsageError(f"The call must be of a dotted name, got {brief(ast.unparse(function))}. {_EXAMPLE}")
    ours = next((recipe for recipe in recipes.NAMES if _is_ours(name, recipe)), None)
    if ours is not None:
        return Constructor(ours, takes_params=False)
    if name in _OTHERS:
        raise UsageError(f"{name} is not one of the originals. {_OTHERS[name]}")
    could_be = {recipe: full for full, recipe in reversed(_PAIRS) if _ends_with(full, name)}
    recipe = _RECIPE_OF.get(name)
    if recipe is None and len(could_be) == 1:
        (recipe,) = could_be
    if recipe is not None:
        return Constructor(recipe, recipe in _TAKE_PARAMS, tuple(sorted(could_be.keys() - {recipe})))
    if could_be:
        raise UsageError(f"{name} is called in several libraries. Write the module, or say --from:{_either(could_be)}")
    raise UsageError(f"{brief(name)} is not a constructor known here. {_nearest(name)}")


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` of such an expression, or None."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def brief(text: str, longest: int = 60) -> str:
    """The text on one line, cut where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def is_known(name: str | None) -> bool:
    """Whether some original is called by this name."""
    return name is not None and any(_ends_with(full, name) for full, _ in _PAIRS)


_EXAMPLE = "Write it as transformers.Adafactor(...), optax.adafactor(...), ..."


def _is_ours(name: str | None, recipe: str) -> bool:
    return name in (f"recipes.{recipe}", f"adafactor_spec.recipes.{recipe}")


def _ends_with(full: str, name: str) -> bool:
    return f".{full}".endswith(f".{name}")


def _either(could_be: dict[str, str]) -> str:
    return "".join(f"\n  {full}  (--from {recipe})" for recipe, full in sorted(could_be.items()))


def _nearest(name: str) -> str:
    last = name.rpartition(".")[2]
    same = {recipe: full for full, recipe in reversed(_PAIRS) if full.rpartition(".")[2] == last}
    if same:
        return f"Write the module of the library, or say --from:{_either(same)}"
    return nearest(name, _RECIPE_OF) or f"{_EXAMPLE}, or say --from {'|'.join(sorted(_NAMES))}."
