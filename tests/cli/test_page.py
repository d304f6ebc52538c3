import json
from pathlib import Path

import pytest
import torch

import lrzip
from lrzip.cli.page import check_page, write_page
from lrzip.core.errors import UsageError


def data_of(page: str) -> dict[str, object]:
    """Return the document that the script of a page holds."""
    line = next(line for line in page.splitlines() if '"schema"' in line)
    start = line.index("{")
    document: dict[str, object] = json.JSONDecoder().raw_decode(line[start:])[0]
    return document


def test_a_page_has_a_curve_for_every_layer_and_no_spectra(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"fc.weight": torch.rand(900, 300), "zero.weight": torch.zeros(5, 4)}, tmp_path / "a.pt")
    analysis = lrzip.analyze(tmp_path / "a.pt")
    write_page(analysis, analysis.to_dict(spectrum=True), tmp_path / "a.html")
    document = data_of((tmp_path / "a.html").read_text(encoding="utf-8"))
    rows = document["layers"]
    assert isinstance(rows, list)
    curves = {row["name"]: row["curve"] for row in rows}
    assert len(curves["fc"]) == 200  # no more points than a chart has pixels
    assert curves["fc"][0] == [1, 1.0]
    assert curves["fc"][-1][0] == 300
    assert curves["zero"] == []
    assert all("spectrum" not in row for row in rows)


def test_names_cannot_end_the_script_of_a_page(tmp_path: Path) -> None:
    torch.save({"</script><!--.weight": torch.rand(5, 4)}, tmp_path / "a&b.pt")
    analysis = lrzip.analyze(tmp_path / "a&b.pt")
    write_page(analysis, analysis.to_dict(), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "</script><!--.weight" not in text
    assert "a&amp;b.pt" in text


def test_a_page_is_html_and_never_the_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes an \.html file"):
        check_page(tmp_path / "a.pdf", tmp_path / "a.pt", force=False)
