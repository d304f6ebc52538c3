"""A self-contained HTML page of an analysis."""

import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lrzip.api.analyze import Analysis
from lrzip.core.errors import UsageError
from lrzip.formats.files.atomic import atomic_file, check_output

# More points than a chart has pixels would only make the file larger.
_POINTS = 200


def check_page(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a page that could not be written, before any work is done."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"`--report` takes an .html file, got `{path}`.")
    check_output(path, source, force=force)


def write_page(analysis: Analysis, document: dict[str, Any], path: Path) -> None:
    """Write a page with a sortable table of the layers, a chart of their spectra, and the kept tensors with reasons.

    Args:
        analysis: The analysis.
        document: The analysis as a JSON document.
        path: File to write.
    """
    curves = {item.candidate.layer.name: _curve(item.candidate.spectra[0].values.tolist()) for item in analysis.layers}
    data = {**document, "layers": [{**row, "curve": curves[row["name"]]} for row in document["layers"]]}
    for row in data["layers"]:
        row.pop("spectrum", None)
    template = files("lrzip.cli").joinpath("page.html").read_text(encoding="utf-8")
    embedded = json.dumps(data).replace("</", "<\\/").replace("<!--", "<\\!--")
    text = Template(template).substitute(title=html.escape(str(document["source"]["path"])), data=embedded)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _curve(values: list[float]) -> list[list[float]]:
    """Return at most `_POINTS` pairs of rank and σ / σ₁."""
    if not values[0]:
        return []
    count = min(len(values), _POINTS)
    picked = [index * (len(values) - 1) // max(count - 1, 1) for index in range(count)]
    return [[index + 1, float(f"{values[index] / values[0]:.4g}")] for index in picked]
