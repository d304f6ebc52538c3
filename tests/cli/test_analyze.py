import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch

from tests.support.checkpoints import BUILDERS, nested
from tests.support.schemas import ANALYZE
from tests.support.shell import error_of, run


@pytest.mark.parametrize("kind", BUILDERS)
def test_json_follows_the_schema(kind: str, tmp_path: Path) -> None:
    path = BUILDERS[kind](tmp_path)
    done = run("analyze", path, "--json", "--spectrum")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    jsonschema.validate(document, ANALYZE)
    assert document["source"]["path"] == str(path)
    assert len(document["layers"]) == 5
    assert done.stderr == b""


def test_numbers_that_do_not_exist_are_null(tmp_path: Path) -> None:
    torch.save({"zero.weight": torch.zeros(6, 5)}, tmp_path / "a.pt")
    (row,) = json.loads(run("analyze", tmp_path / "a.pt", "--json").stdout)["layers"]
    jsonschema.validate(row, ANALYZE["properties"]["layers"]["items"])
    assert row["condition_number"] is row["stable_rank"] is row["decay_rate"] is None
    assert run("analyze", tmp_path / "a.pt").returncode == 0


def test_the_table_has_every_layer_in_full_and_every_reason(tmp_path: Path) -> None:
    name = "a_very_long_name_of_a_block." * 6 + "conv"
    torch.save({f"{name}.weight": torch.rand(9, 9), "emb.weight": torch.rand(9, 9)}, tmp_path / "a.pt")
    text = run("analyze", tmp_path / "a.pt").stdout.decode()
    assert name in text
    assert "emb: embedding" in text
    for column in ("layer", "shape", "rank", "0.95", "break-even", "condition", "‖W‖₂", "spectrum"):
        assert column in text
    assert "energy 0.9: " in text


def test_standard_input_gives_the_same_as_the_file(tmp_path: Path) -> None:
    path = nested(tmp_path)
    from_file, piped = (
        json.loads(done.stdout)
        for done in (run("analyze", path, "--json"), run("analyze", "--json", stdin=path.read_bytes()))
    )
    assert piped["source"].pop("path") == "-"
    assert from_file["source"].pop("path") == str(path)
    assert piped == from_file


def test_sorting(tmp_path: Path) -> None:
    path = nested(tmp_path)
    done = run("analyze", path, "--json", "--sort", "parameters")
    counts = [row["parameters"] for row in json.loads(done.stdout)["layers"]]
    assert counts == sorted(counts, reverse=True)
    assert "`--sort` takes one of name, kind" in error_of(run("analyze", path, "--sort", "beauty"), 2)


def test_ranks_are_reported_for_the_requested_energies(tmp_path: Path) -> None:
    done = run("analyze", nested(tmp_path), "--energy", "0.5", "--energy", "0.999", "--json")
    assert list(json.loads(done.stdout)["layers"][0]["energy_ranks"]) == ["0.5", "0.999"]


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plots(suffix: str, magic: bytes, tmp_path: Path) -> None:
    done = run("analyze", nested(tmp_path), "--plot", tmp_path / f"spectra.{suffix}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"spectra.{suffix}").read_bytes().startswith(magic)


def test_a_report_is_one_page_that_asks_the_network_for_nothing(tmp_path: Path) -> None:
    state = {"</script><b>x.weight": torch.rand(9, 9), "y.weight": torch.rand(9, 9)}
    torch.save(state, tmp_path / "a.pt")
    done = run("analyze", tmp_path / "a.pt", "--report", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)", page)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data
    rows = json.loads(data[1])["layers"]
    assert rows[0]["name"] == "</script><b>x"
    assert rows[1]["curve"][0] == [1, 1.0]


@pytest.mark.parametrize("option", [["--plot", "x.gif"], ["--report", "x.txt"]])
def test_pictures_and_pages_of_other_kinds_are_refused(option: list[str], tmp_path: Path) -> None:
    assert "got `x." in error_of(run("analyze", nested(tmp_path), *option, cwd=tmp_path), 2)


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    torch.save({"\x1b[2Jx\n.weight": torch.rand(9, 9)}, tmp_path / "a.pt")
    assert b"\x1b" not in run("analyze", tmp_path / "a.pt").stdout
    error = run("analyze", tmp_path / "a.pt", "--skip", "nothing").stderr
    assert b"\x1b" not in error
    assert error.count(b"\n") == 1
