"""The report folder: `index.html` (self-contained), the plots as PNG, and `report.json` with every figure."""

import base64
import json
from pathlib import Path

import jinja2

from . import _plots, _tables, _zoo
from ._stepping import PAIRS
from ._verification import Verification


def write(found: Verification, folder: Path) -> None:
    """Write the report of a finished run to an existing folder."""
    plots = _plots.draw(found)
    for name in _plots.NAMES:  # of an earlier run, which this page would not show
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name, content in plots.items():
        (folder / f"{name}.png").write_bytes(content)
    # The page comes last: who sees it finds the rest complete.
    (folder / "report.json").write_text(json.dumps(found.as_dict(), indent=1, allow_nan=False), encoding="utf-8")
    (folder / "index.html").write_text(_page(found, plots), encoding="utf-8")


def _page(found: Verification, plots: dict[str, bytes]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adafactor_parity"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    embedded = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in plots.items()}
    return environment.get_template("report.html.j2").render(
        found=found, plots=embedded, pairs=list(PAIRS), deviation=_tables.deviation, zoo=_zoo
    )
