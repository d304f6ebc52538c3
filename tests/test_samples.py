"""The samples run, and print the results that their README and the checkpoint state."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
LINE = r"(?m)^  (\w.*?)  +((?: *[\d.]+){4})$"
WAYS = ("compressed, plain PyTorch", "compressed, lrzip.load_into", "compressed, --to dense")

pytest.importorskip("sklearn", reason="the samples train on scikit-learn's digits")


def run_sample(name: str, *options: str) -> str:
    command = [sys.executable, "-W", "error", f"samples/{name}", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def load_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    return load_checkpoint(SAMPLES / "digits.pt")


@pytest.fixture(scope="module")
def output() -> str:
    return run_sample("compress_digits.py")


@pytest.fixture(scope="module")
def rows(output: str) -> dict[str, tuple[int, float]]:
    """Return the parameters and the test accuracy of each row of the table, by name."""
    found = re.findall(r"^(\S.*?) +([\d,]+) +([\d.]+) %$", output, flags=re.MULTILINE)
    return {name: (int(parameters.replace(",", "")), float(accuracy)) for name, parameters, accuracy in found}


def test_checkpoint_is_small_enough_to_commit() -> None:
    assert (SAMPLES / "digits.pt").stat().st_size < 300_000


def test_walk_through_has_a_line_for_each_way(rows: dict[str, tuple[int, float]]) -> None:
    assert tuple(rows) == ("digits.pt", *WAYS)


def test_stored_accuracy_is_reproduced(rows: dict[str, tuple[int, float]], checkpoint: dict[str, Any]) -> None:
    assert rows["digits.pt"][1] == round(checkpoint["test_accuracy"], 2)


def test_checkpoint_is_worth_compressing(checkpoint: dict[str, Any]) -> None:
    assert checkpoint["test_accuracy"] > 97


def test_all_ways_of_loading_agree(rows: dict[str, tuple[int, float]]) -> None:
    assert len({rows[way][1] for way in WAYS}) == 1


def test_compression_costs_less_than_one_point(rows: dict[str, tuple[int, float]]) -> None:
    assert rows[WAYS[0]][1] > rows["digits.pt"][1] - 1


def test_dense_models_have_the_parameters_of_the_checkpoint(
    rows: dict[str, tuple[int, float]], checkpoint: dict[str, Any]
) -> None:
    stored = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())

    assert rows["digits.pt"][0] == rows["compressed, --to dense"][0] == stored


def test_factorized_models_have_less_than_half_the_parameters(rows: dict[str, tuple[int, float]]) -> None:
    by_hand, by_lrzip = rows["compressed, plain PyTorch"][0], rows["compressed, lrzip.load_into"][0]

    assert by_hand == by_lrzip < rows["digits.pt"][0] / 2


def test_readme_shows_what_the_walk_through_prints(output: str) -> None:
    assert f"```text\n{output}```" in (SAMPLES / "README.md").read_text(encoding="utf-8")


def test_training_saves_a_checkpoint_like_the_committed_one(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    path = tmp_path / "one_epoch.pt"

    printed = run_sample("train_digits.py", "--epochs", "1", "--output", str(path))

    trained = load_checkpoint(path)
    shapes, committed = ({k: v.shape for k, v in c["state_dict"].items()} for c in (trained, checkpoint))
    assert shapes == committed
    assert trained.keys() == checkpoint.keys()
    assert trained["epoch"] == 1
    assert f"test accuracy {trained['test_accuracy']:.2f} %\n" in printed
    assert trained["test_accuracy"] > 30, "chance is 10 %"


def test_matrix_compression_shows_what_theory_says(tmp_path: Path) -> None:
    output = run_sample("matrix_compression.py", "--output", str(tmp_path / "curves.png"))
    fast, slow = (
        {name.strip(): [float(value) for value in values.split()] for name, values in re.findall(LINE, part)}
        for part in output.split("slow decay")
    )
    assert slow["deterministic"] == fast["deterministic"] == [1, 1, 1, 1]
    order = ["deterministic", "power, q = 2", "power, q = 1", "basic, p = 20", "basic, p = 10", "basic, p = 5"]
    for better, worse in pairwise(order):
        assert all(a < b for a, b in zip(slow[better], slow[worse], strict=True))
    # The power scheme closes the gap that the bare sketch leaves, where singular values fall slowly.
    assert all(value > 1.15 for value in slow["basic, p = 10"])
    assert all(value < 1.02 for value in slow["power, q = 2"])
    # Where they fall fast, one iteration does, and so do more vectors than the rank.
    assert all(value < 1.002 for value in fast["power, q = 1"])
    assert all(a - 1 < (b - 1) / 4 for a, b in zip(fast["basic, p = 20"], fast["basic, p = 5"], strict=True))
    assert (tmp_path / "curves.png").stat().st_size > 10_000
