import math
from pathlib import Path

import pytest
import torch

import lrzip
from lrzip.core.errors import UsageError
from tests.support.checkpoints import nested
from tests.support.matrices import slow, with_spectrum


def test_numbers_of_a_layer_are_those_of_its_spectrum(tmp_path: Path) -> None:
    weight = with_spectrum((30, 72), slow(30)).reshape(30, 8, 3, 3)
    torch.save({"conv.weight": weight}, tmp_path / "a.pt")
    (row,) = lrzip.analyze(tmp_path / "a.pt").to_dict(spectrum=True)["layers"]
    total = float(slow(30).square().sum())
    assert row["matrix"] == [30, 72]
    assert row["rank"] == 30
    assert row["break_even_rank"] == math.ceil(30 * 72 / 102) - 1
    assert row["spectrum"] == pytest.approx(slow(30).tolist(), rel=1e-5)
    assert row["spectral_norm"] == pytest.approx(1, rel=1e-5)
    assert row["frobenius_norm"] == pytest.approx(math.sqrt(total), rel=1e-5)
    assert row["stable_rank"] == pytest.approx(total, rel=1e-5)
    assert row["condition_number"] == pytest.approx(math.sqrt(30), rel=1e-5)
    assert row["decay_rate"] == pytest.approx(-math.log(30) / 2 / 29, rel=1e-4)


def test_parameters_at_an_energy_are_those_that_compress_writes(tmp_path: Path) -> None:
    path = nested(tmp_path)
    totals = lrzip.analyze(path, energies=[0.5, 0.8]).to_dict()["totals"]
    for energy in (0.5, 0.8):
        after = lrzip.compress(path, energy=energy, dry_run=True).parameters_after
        assert totals["parameters_at_energy"][f"{energy:g}"] == after


def test_every_tensor_is_a_layer_its_bias_or_kept(tmp_path: Path) -> None:
    document = lrzip.analyze(nested(tmp_path)).to_dict()
    biases = sum(1 for row in document["layers"] if row["name"] in ("conv2", "fc1", "fc2"))
    assert len(document["layers"]) + biases + len(document["kept"]) == document["totals"]["tensors"]


def test_a_doubt_is_settled_by_a_name_in_full(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.rand(8, 1, 3, 3), "b.weight": torch.rand(8, 8)}, tmp_path / "a.pt")
    assert [row.candidate.layer.name for row in lrzip.analyze(tmp_path / "a.pt").layers] == ["b"]
    assert [row.candidate.layer.name for row in lrzip.analyze(tmp_path / "a.pt", only=["a"]).layers] == ["a"]


def test_a_file_with_nothing_to_factorize_still_gives_its_reasons(tmp_path: Path) -> None:
    torch.save({"emb.weight": torch.rand(8, 8), "x": torch.rand(3)}, tmp_path / "a.pt")
    document = lrzip.analyze(tmp_path / "a.pt").to_dict()
    assert document["layers"] == []
    assert [item["reason"] for item in document["kept"]] == ["embedding", "a vector"]


def test_energies_out_of_range_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        lrzip.analyze(nested(tmp_path), energies=[1.5])
