"""What a user meets: every public name exists and is documented, the examples run, nothing points at one machine."""

import functools
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from parity_tests.profiles import draws_many

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adafactor_spec", "adafactor_jax", "adafactor_torch", "adafactor_parity")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

# ------------------------------------------------------------------------------------------------- public names


def public_names(module: ModuleType) -> list[str]:
    """`__all__`, or what a module without one defines under a public name."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def undocumented(name: str, value: Any) -> list[str]:
    """Dotted names below and including `name` that lack a docstring of their own.

    Of a module, its public names; of a class, its public methods and properties. Plain data cannot carry a docstring.
    """
    members: dict[str, Any] = {}
    if inspect.ismodule(value):
        members = {member: getattr(value, member) for member in public_names(value)}
    elif inspect.isclass(value):
        members = {member: part for member, part in vars(value).items() if not member.startswith("_")}
        members = {member: getattr(part, "__func__", part) for member, part in members.items()}
        members = {member: part for member, part in members.items() if inspect.isfunction(part) or is_property(part)}
    elif not inspect.isroutine(value) and not is_property(value):
        return []
    missing = [] if has_docstring(value) else [name]
    return missing + [gap for member, part in members.items() for gap in undocumented(f"{name}.{member}", part)]


def is_property(value: object) -> bool:
    return isinstance(value, property) or type(value).__name__ == "cached_property"


def has_docstring(value: Any) -> bool:
    """Whether somebody wrote a docstring: not inherited, and not the signature that dataclasses and NamedTuple put."""
    if inspect.isclass(value):
        text = vars(value).get("__doc__") or ""
        return bool(text) and not text.startswith(f"{value.__name__}(")
    return bool(value.__doc__)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert hasattr(module, "__all__"), f"{package} needs __all__"
    assert len(set(module.__all__)) == len(module.__all__), "a name stands twice in __all__"
    assert not [name for name in module.__all__ if not hasattr(module, name)]
    assert not undocumented(package, module)


class _Documented:
    """Documented."""

    def method(self) -> None:
        """Documented."""


class _Inherits(_Documented):
    def method(self) -> None: ...

    @property
    def value(self) -> int:
        return 1

    @classmethod
    def make(cls) -> None: ...


@dataclass
class _Data:
    x: int


class _Tuple(NamedTuple):
    x: int


def test_the_docstring_check_sees_faults() -> None:
    module = ModuleType("module", "Documented.")
    module.f, module.Inherits, module.data = (lambda: None), _Inherits, 1  # type: ignore[attr-defined]
    module.__all__ = ["Inherits", "data", "f"]  # type: ignore[attr-defined]
    missing = ["Inherits", "Inherits.method", "Inherits.value", "Inherits.make", "f"]
    assert undocumented("m", module) == [f"m.{name}" for name in missing]
    assert undocumented("m", ModuleType("module")) == ["m"]
    assert undocumented("Data", _Data) == ["Data"]
    assert undocumented("Tuple", _Tuple) == ["Tuple"]
    assert not undocumented("Documented", _Documented)


# ------------------------------------------------------------------------------------------------- examples

FENCE = re.compile(r"^(?P<indent> *)```(?:python|py)\b[^\n]*\n(?P<code>.*?)^(?P=indent)``` *$", re.M | re.S)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*\Z")  # in the line above a block, with the reason


def examples(page: str) -> list[str]:
    """The Python blocks of a page, each moved to its own line number; a block marked as not run is left out."""
    return [
        "\n" * (page.count("\n", 0, fence.start()) + 1) + textwrap.dedent(fence["code"])
        for fence in FENCE.finditer(page)
        if not NOT_RUN.search(page[: fence.start()])
    ]


# A fresh interpreter, because a reader has none of the settings of this test suite. It reads a list of pages, each with
# its codes, and prints the traceback of each page that fails.
RUN_EXAMPLES = """
import json, sys, traceback
failed = {}
for page, codes in json.load(sys.stdin).items():
    try:
        for code in codes:
            exec(compile(code, page, "exec"), {"__name__": "__main__"})
    except Exception:
        failed[page] = traceback.format_exc()
print(chr(0) + json.dumps(failed))
"""


def run_examples(pages: dict[str, list[str]], folder: Path) -> dict[str, str]:
    """Runs each code in a namespace of its own, with warnings as errors; the traceback of each page that fails."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_EXAMPLES],
        input=json.dumps(pages),
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.rpartition("\0")[2]))


@functools.cache
def failed_examples(pages: tuple[Path, ...], folder: Path) -> dict[str, str]:
    return run_examples({str(page): examples(page.read_text(encoding="utf-8")) for page in pages}, folder)


@pytest.mark.xdist_group("examples in pages")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(page: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By default one interpreter runs the pages; in a thorough run each has its own, as for a reader of that page."""
    alone = [page for page in PAGES if "jax_num_cpu_devices" in page.read_text(encoding="utf-8")]  # asked for at first
    pages = (page,) if draws_many() or page in alone else tuple(page for page in PAGES if page not in alone)
    failed = failed_examples(pages, tmp_path_factory.getbasetemp())
    assert str(page) not in failed, failed[str(page)]


def test_readme_shows_both_frameworks_and_the_schedule() -> None:
    shown = "\n".join(examples((ROOT / "README.md").read_text(encoding="utf-8")))
    assert [word for word in ("adafactor_jax", "adafactor_torch", "piecewise_constant") if word not in shown] == []


def test_the_examples_check_sees_faults(tmp_path: Path) -> None:
    page = """
```python
x = 1
```
<!-- not run: needs a file -->
```python
open("missing")
```
* in a list
  ```python
  x
  ```
```sh
echo
```
"""
    good, bad = examples(page)
    failed = run_examples({"good.md": [good], "page.md": [good, bad], "last.md": [good]}, tmp_path)
    assert list(failed) == ["page.md"]
    assert 'File "page.md", line 11' in failed["page.md"]
    assert "NameError" in failed["page.md"]


# ------------------------------------------------------------------------------------------------- paths and links

# Folders that exist on one machine only. Paths in a URL, and paths like /path/to/x, are not meant.
ABSOLUTE = re.compile(
    r"(?<![\w./:-])(?:/(?:data|home|media|mnt|opt|root|scratch|srv|tmp|Users|var|work|workspace)/|[A-Z]:\\Users)[\w.-]+"
)
UPWARDS = re.compile(r"(?<![\w./])(?:\.\./)+[\w.-]+")
LINK = re.compile(r"""(?:\]\(|(?:href|src)=["'])(?![a-z]+:|#)([^)"'#\s]+)""")


def outside(text: str, file: Path) -> list[str]:
    """Paths in a text file that mean nothing in another clone: absolute ones, and "../" to what is not in this one."""
    upwards = [match[0] for match in UPWARDS.finditer(text)]
    lost = [path for path in upwards if not (is_here(file.parent / path) or is_here(ROOT / path))]
    return [match[0] for match in ABSOLUTE.finditer(text)] + lost


def dead_links(text: str, file: Path) -> list[str]:
    """Relative links of a Markdown page that lead nowhere in the repository."""
    return [link for link in LINK.findall(text) if not is_here(file.parent / link)]


def is_here(path: Path) -> bool:
    target = path.resolve()
    return target.exists() and target.is_relative_to(ROOT)


def repository_texts() -> dict[Path, str]:
    """The text files of the repository: those that git tracks, and those that it would add."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git clone: what belongs to the repository is unknown")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return {file: file.read_text(encoding="utf-8") for file in files if b"\0" not in file.read_bytes()}


def test_no_path_leads_out_of_the_repository() -> None:
    found = {str(file.relative_to(ROOT)): outside(text, file) for file, text in repository_texts().items()}
    assert not {file: paths for file, paths in found.items() if paths}


def test_links_lead_somewhere() -> None:
    pages = {file: text for file, text in repository_texts().items() if file.suffix == ".md"}
    found = {str(file.relative_to(ROOT)): dead_links(text, file) for file, text in pages.items()}
    assert not {file: links for file, links in found.items() if links}


def test_the_path_checks_see_faults() -> None:
    page = ROOT / "docs" / "page.md"
    folder = "/".join(["", "home", "somebody"])  # in pieces, or this file would be a fault itself
    assert outside(f"see {folder}/x.py", page) == [f"{folder}"]
    assert outside(f"see {'../' * 2}elsewhere/x", page) == [f"{'../' * 2}elsewhere"]
    assert not outside("see ../LICENSE, https://example.org/home/x, /path/to/python", page)
    assert dead_links("[a](missing.md) [b](../LICENSE) [c](https://example.org/x) [d](#here)", page) == ["missing.md"]
    assert dead_links('<img src="plot.png">', page) == ["plot.png"]
