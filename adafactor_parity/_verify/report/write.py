"""Writes the report folder: `index.html`, which needs no other file, the plots as PNG, and `report.json`."""

import base64
import json
import tempfile
from pathlib import Path

import jinja2

from ..._output import replace_files
from ...errors import UsageError, wrong
from ..stepping import zoo
from ..stepping.step_all import PAIRS
from ..verification import Verification
from . import tables
from .plots import NAMES

PAGE, FIGURES = "index.html", "report.json"


def make_folder(path: Path) -> None:
    """Make the folder of the report. Raises UsageError if that, or writing the report to it, is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _not_written(path, error) from None
    for file in _files(path):
        if file.is_dir():
            raise wrong("--out", f"a folder whose {file.name} can be replaced", str(path), "It is a folder: remove it.")


def write(found: Verification, folder: Path) -> None:
    """Write the report of a finished run to an existing folder. Raises UsageError if that is not possible."""
    contents = {f"{name}.png": content for name, content in found.plots.items()}
    contents[FIGURES] = json.dumps(found.as_dict(), indent=1, allow_nan=False).encode()
    # Names of files may hold bytes that are not UTF-8. The page comes last: who sees it finds the rest complete.
    contents[PAGE] = _page(found).encode("utf-8", "backslashreplace")
    try:
        replace_files(folder, contents)
        for file in _files(folder):
            if file.name not in contents:  # a plot of an earlier run, which this page does not show
                file.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from None


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in (*(f"{name}.png" for name in NAMES), FIGURES, PAGE)]


def _not_written(path: Path, error: OSError) -> UsageError:
    reason = error.strerror or "it cannot be written"
    return wrong("--out", "a folder to write to", str(path), f"{reason}: name one that exists or can be made.")


def _page(found: Verification) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    embedded = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in found.plots.items()}
    return environment.get_template("report.html.j2").render(
        found=found, plots=embedded, pairs=list(PAIRS), deviation=tables.deviation, zoo=zoo
    )
