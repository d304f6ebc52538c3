"""The experiments run on a few samples, and the committed tables agree with the committed measurements."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.networks import ResNet, seeded

EXPERIMENTS = Path(__file__).parents[1] / "samples" / "experiments"
RESULTS = sorted((EXPERIMENTS / "results").glob("*.json"))
Run = Callable[..., Path]

pytest.importorskip("sklearn", reason="the experiments need scipy")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs an experiment as a script and returns its output folder."""

    def run(name: str, *options: str) -> Path:
        path = EXPERIMENTS / f"{name}.py"
        monkeypatch.syspath_prepend(str(EXPERIMENTS))  # as Python does for a script
        monkeypatch.setattr(sys, "argv", [str(path), *options, "--output", str(tmp_path)])
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            for shared in ("experiment", "shrinking"):
                sys.modules.pop(shared, None)
        return tmp_path

    return run


def images(count: int, *shape: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    return {"x": x, "y": np.arange(count, dtype=np.int64) % 10}


def cifar10(folder: Path) -> Path:
    (folder / "cifar10").mkdir()
    for name in ("train_1", "train_2", "test"):
        np.savez(folder / "cifar10" / f"{name}.npz", **images(40, 32, 32, 3))
    return folder / "cifar10"


def measured(folder: Path, name: str) -> dict[str, Any]:
    """Return the measurements, after checking that their table and figure exist."""
    results: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert (folder / f"{name}.png").stat().st_size > 10_000
    assert "published" in (folder / f"{name}.md").read_text(encoding="utf-8")
    return results


def test_mnist_takes_every_sketch_at_every_rank(run: Run, tmp_path: Path) -> None:
    parts = {f"{part}_{name}": array for part in ("train", "test") for name, array in images(60, 28, 28).items()}
    np.savez(tmp_path / "mnist.npz", **parts)
    results = measured(run("mnist_mlp", "--data", str(tmp_path / "mnist.npz"), "--quick"), "mnist_mlp")
    assert results["parameters"] == 785 * 512 + 513 * 256 + 257 * 10
    assert {(row["rank"], row["method"]) for row in results["rows"]} == {
        (rank, method) for rank in (20, 50) for method in ("basic", "power", "SRFT", "deterministic")
    }
    errors = {(row["rank"], row["method"]): row["error"] for row in results["rows"]}
    for rank in (20, 50):  # the exact SVD is optimal, and a power iteration reduces the error
        assert errors[rank, "deterministic"] < errors[rank, "power"] < min(errors[rank, "basic"], errors[rank, "SRFT"])


def test_cifar_compresses_the_layers_of_the_report(run: Run, tmp_path: Path) -> None:
    results = measured(run("cifar_cnn", "--data", str(cifar10(tmp_path)), "--quick"), "cifar_cnn")
    assert results["parameters"] == 1_276_234
    # The published 120,150 count the 8 + 4 singular values.
    assert {row["parameters"] for row in results["linear"]["rows"]} == {120_150 - 8 - 4}
    saved = 64 * 32 * 9 - 8 * (32 * 9 + 64)
    assert {row["parameters"] for row in results["conv"]["rows"]} == {1_276_234 - saved}


def test_tiny_cnns_have_the_published_parameters(run: Run, tmp_path: Path) -> None:
    results = measured(run("tiny_cnn", "--data", str(cifar10(tmp_path)), "--quick"), "tiny_cnn")
    assert {row["name"]: row["parameters"] for row in results["scratch"]} == {
        "base": 261_834,
        "rank 8": 24_162,
        "rank 16": 45_882,
        "rank 32": 89_322,
        "rank 64": 176_202,
        "depthwise-separable": 33_637,
    }
    # Factors by lrzip lack the 384 biases of the 1×1 convolutions, and a convolution that would not shrink is dense.
    before = {row["name"]: row["parameters"] for row in results["factorized"]}
    assert before["rank 8"] == 24_162 - 384
    assert before["rank 64"] < 176_202 - 384


def test_housing_keeps_to_the_ratios(run: Run, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 8), dtype=np.float32)
    np.savez(tmp_path / "houses.npz", x=x, y=x.sum(1))
    results = measured(run("housing", "--data", str(tmp_path / "houses.npz"), "--quick"), "housing")
    sizes = {row["network"]: row["parameters"] for row in results["rows"]}
    assert sizes["dense"] == sizes["dense, trained further"] == 45_569
    for ratio in (4.63, 5.53, 9.15, 11.62):
        # A budget is used to within one rank of the largest layer, 256 + 128 parameters.
        assert 45_569 / ratio - 384 <= sizes[f"{ratio}×"] <= 45_569 / ratio


def test_resnet_keeps_to_its_budgets(run: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": seeded(ResNet).state_dict()}, tmp_path / "resnet.pt")
    options = ("--data", str(cifar10(tmp_path)), "--checkpoint", str(tmp_path / "resnet.pt"), "--quick")
    results = measured(run("resnet20", *options), "resnet20")
    whole = results["dense"]["parameters"]
    assert whole == 269_722
    for share, row in zip((0.4, 0.4, 0.25, 0.15, 0.15), results["rows"], strict=True):
        # A budget is used to within one rank of the largest layer, 64 · 9 + 64 parameters.
        assert share * whole - 640 <= row["parameters"] <= share * whole


def test_adaptive_cnn_keeps_to_its_budgets(run: Run, tmp_path: Path) -> None:
    results = measured(run("adaptive_cnn", "--data", str(cifar10(tmp_path)), "--quick"), "adaptive_cnn")
    assert results["dense"]["parameters"] == 1_571_466
    for smaller, row in zip((12, 20), results["rows"], strict=True):
        # To within one rank of the largest layer, 256 · 9 + 512 parameters.
        assert 1_571_466 / smaller - 2 * 2816 <= row["parameters"] <= 1_571_466 / smaller


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_tables_agree_with_the_committed_measurements(path: Path, run: Run, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path)
    table = run(path.stem, "--redraw") / f"{path.stem}.md"
    assert table.read_text(encoding="utf-8") == path.with_suffix(".md").read_text(encoding="utf-8")
    assert path.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give either --data or --redraw"),
        (("--data", "nowhere", "--checkpoint", "nowhere"), "there is no nowhere"),
        (("--data", "."), "--data needs --checkpoint here"),
    ],
)
def test_invalid_options_are_refused(
    options: tuple[str, ...], said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("resnet20", *options)
    assert said in capsys.readouterr().err
