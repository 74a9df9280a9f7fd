"""The packages are layers: importing one framework never brings in the other, and nobody reaches into private files.

Three independent checks, because each sees what the others cannot: what really gets imported, import-linter on the
graph of imports (also those inside functions), and a reading of the source for private names. Each check has faults
beside it that it must catch.
"""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adafactor_spec", "adafactor_jax", "adafactor_torch", "adafactor_parity")
JAX = {"jax", "jaxlib", "optax"}

# Imports every module of a package, private ones too, and prints the names of all packages that came with them.
IMPORT_ALL = """
import importlib, pkgutil, sys
before = set(sys.modules)
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
LINT_IMPORTS = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports(no_cache=True))
"""
# In the lower module of a stand-in, which the upper one imports. An import that is for types only counts, too.
CIRCLE = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .{upper} import x"
FLOORS = "adafactor_torch has floors"
BACKENDS = "adafactor_torch._backends"


def python(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter in which the packages of `folder` come before the installed ones."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def imported_with(package: str, folder: Path = ROOT) -> set[str]:
    """Names of the packages that importing every module of `package` brings in, itself included."""
    result = python(IMPORT_ALL, package, folder=folder)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def floors() -> list[str]:
    """The modules of adafactor_torch that pyproject.toml gives a floor."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["name"] == FLOORS]
    return [module.strip() for layer in layers for module in layer.split("|")]


def write_packages(folder: Path, **sources: str) -> None:
    """Writes a stand-in for each of our packages: two private modules, of which the upper one imports the lower one.

    Args:
        folder: where they are written.
        sources: by the name of a package what stands in its lower module, or by that of a module what stands there.
    """
    modules: dict[str, str] = {}
    for package in PACKAGES:
        upper, lower = ("_step", "_task") if package == "adafactor_torch" else ("_other", "_part")
        modules |= {package: "", f"{package}.{upper}": f"from . import {lower}"}
        modules[f"{package}.{lower}"] = sources.get(package, "").format(upper=upper)
    modules |= {f"adafactor_torch.{floor}": "" for floor in floors() if f"adafactor_torch.{floor}" not in modules}
    modules |= {f"{BACKENDS}.{backend}": "" for backend in ("eager", "cpp", "triton")}
    modules |= {name: source for name, source in sources.items() if name not in PACKAGES}
    for name, source in modules.items():
        is_package = name in (*PACKAGES, BACKENDS)
        path = folder.joinpath(*name.split("."), *(["__init__"] if is_package else [])).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)


def test_spec_needs_numpy_only() -> None:
    cython = {"cython_runtime"}  # comes with numpy's own extension modules
    others = imported_with("adafactor_spec") - sys.stdlib_module_names - {"adafactor_spec", "numpy"} - cython
    assert not {name for name in others if not name.startswith("_cython")}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("adafactor_jax", {"torch", "adafactor_torch", "adafactor_parity"}),
        ("adafactor_torch", {*JAX, "adafactor_jax", "adafactor_parity"}),
    ],
)
def test_one_framework_does_not_import_the_other(package: str, forbidden: set[str]) -> None:
    assert not imported_with(package) & forbidden


def test_the_import_check_sees_a_private_module(tmp_path: Path) -> None:
    write_packages(tmp_path, adafactor_jax="import torch")
    (tmp_path / "torch.py").touch()
    assert "torch" in imported_with("adafactor_jax", tmp_path)


def test_lint_imports() -> None:
    result = python(LINT_IMPORTS, folder=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("package", "fault", "contract"),
    [
        ("adafactor_spec", "import torch", "adafactor_spec knows no framework"),
        ("adafactor_spec", "def f():\n    import jax.numpy", "adafactor_spec knows no framework"),
        ("adafactor_spec", "import adafactor_jax", "The packages are layers"),
        ("adafactor_spec", CIRCLE, "No modules import each other in a circle"),
        ("adafactor_jax", CIRCLE, "No modules import each other in a circle"),
        ("adafactor_torch", CIRCLE, "No modules import each other in a circle"),
        ("adafactor_parity", CIRCLE, "No modules import each other in a circle"),
        ("adafactor_jax", "import torch", "adafactor_jax does not know torch"),
        ("adafactor_jax", "import adafactor_torch", "The packages are layers"),
        ("adafactor_jax", "import adafactor_parity", "The packages are layers"),
        ("adafactor_torch", "import optax", "adafactor_torch does not know JAX"),
        ("adafactor_torch", "import adafactor_jax", "The packages are layers"),
        ("adafactor_torch", "import adafactor_parity", "The packages are layers"),
        ("adafactor_torch", "from . import _sharding", FLOORS),
        ("adafactor_torch._step", "from . import _state_dict", FLOORS),
        (f"{BACKENDS}.cpp", "from .. import _adafactor", FLOORS),
        ("adafactor_torch._new", "", FLOORS),
        (f"{BACKENDS}.triton", "from . import cpp", "The backends of adafactor_torch do not know each other"),
        (f"{BACKENDS}.eager", "def f():\n    from .triton import x", "The backends of adafactor_torch"),
        (f"{BACKENDS}.eager", "from .. import _task", None),
        ("adafactor_parity", "import adafactor_jax, adafactor_torch, jax, torch", None),
    ],
)
def test_lint_imports_sees_faults(tmp_path: Path, package: str, fault: str, contract: str | None) -> None:
    write_packages(tmp_path, **{package: fault})
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    result = python(LINT_IMPORTS, folder=tmp_path)
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    if contract is None:
        assert result.returncode == 0, result.stdout + result.stderr
        assert not broken
    else:
        assert result.returncode == 1, result.stdout + result.stderr
        assert any(line.startswith(contract) for line in broken)


def private_uses(source: str, package: str) -> list[str]:
    """Dotted names in the source of a module of `package` that are private to another of our packages."""
    tree = ast.parse(source)
    meaning: dict[str, str] = {}  # what a local name stands for
    used: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                meaning[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                used.append(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                used.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            used.append(f"{meaning.get(root, '')}.{rest}")
    foreign = [name for name in used if name.partition(".")[0] in PACKAGES and name.partition(".")[0] != package]
    return [name for name in foreign if any(is_private(part) for part in name.split("."))]


def is_private(name: str) -> bool:
    """Whether a name is private; what `typing.NamedTuple` makes public under such names is not."""
    return name.startswith("_") and not name.startswith("__") and name not in ("_asdict", "_fields", "_replace")


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks", "examples"])
def test_no_private_name_of_another_package(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    uses = {str(file.relative_to(ROOT)): private_uses(file.read_text(encoding="utf-8"), package) for file in files}
    assert not {file: names for file, names in uses.items() if names}


@pytest.mark.parametrize(
    "fault",
    [
        "from adafactor_spec._recipe import Recipe",
        "from adafactor_spec import _recipe",
        "from adafactor_spec.schedules import _number",
        "import adafactor_spec._recipe",
        "import adafactor_spec._recipe as recipe",
        "import adafactor_spec\nadafactor_spec._recipe.Recipe()",
        "import adafactor_spec as spec\nspec.factoring._cache",
        "from adafactor_spec import factoring as rules\ndef f():\n    return rules._cache",
    ],
)
def test_the_private_check_sees_faults(fault: str) -> None:
    assert private_uses(fault, "adafactor_torch")


@pytest.mark.parametrize(
    "source",
    [
        "from adafactor_spec import Recipe, factoring\nfactoring.plan",
        "from ._kernel import step",
        "from adafactor_torch._kernel import step",
        "import torch\ntorch._foreach_mul_",
        "from adafactor_spec import __version__",
        "from adafactor_spec import oracle\noracle.State._fields",
        "self._anything",
    ],
)
def test_the_private_check_lets_pass(source: str) -> None:
    assert not private_uses(source, "adafactor_torch")
