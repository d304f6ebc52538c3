"""`lrzip analyze --data` and `--sensitivity`."""

import json
from pathlib import Path

import jsonschema
import pytest

from tests.support.schemas import ANALYZE
from tests.support.shell import error_of, run
from tests.support.tasks import TwoConvolutions, classes, write_compressed, write_data, write_trained

DATA = ("--model", "tests.support.tasks:Classifier", "--data", "data.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    write_trained(path)
    write_data(path / "data.npz", *classes())
    write_data(path / "narrow.npz", classes()[0][:, :5], classes()[1])
    write_data(path / "unlabelled.npz", classes()[0])
    return path


def test_data_give_metrics_and_the_shape_of_the_inputs(folder: Path) -> None:
    done = run("analyze", "dense.pt", *DATA, "--metric", "accuracy", "--json", cwd=folder)
    assert done.stderr == b""
    document = json.loads(done.stdout)
    jsonschema.validate(document, ANALYZE)
    assert document["evaluation"]["val_examples"] == 40
    assert document["evaluation"]["metrics"]["accuracy"] > 0.9
    assert document["totals"]["costs_at_energy"]["0.99"]["macs_before"] == 12 * 32 + 32 * 4
    text = run("analyze", "dense.pt", *DATA, cwd=folder).stdout.decode()
    assert "% on 40 validation samples" in text


def test_a_factorized_checkpoint_is_measured_too(folder: Path, tmp_path: Path) -> None:
    write_compressed(tmp_path)
    done = run("analyze", tmp_path / "small.pt", *DATA, "--json", "--only", "fc2", cwd=folder)
    assert json.loads(done.stdout)["evaluation"]["metrics"]["accuracy"] < 0.9


def test_sensitivities_as_table_json_and_picture(folder: Path, tmp_path: Path) -> None:
    options = ("--sensitivity", "--energy", "0.3", "--energy", "0.9", "--finetune-steps", "4", "--runs", "2")
    kept = ("--cache", tmp_path / "cache.jsonl", "--plot", tmp_path / "s.png")
    done = run("analyze", "dense.pt", *DATA, *options, *kept, "--json", cwd=folder)
    document = json.loads(done.stdout)
    jsonschema.validate(document, ANALYZE)
    assert done.stderr == b""
    assert [(item["name"], item["energy"]) for item in document["sensitivity"]["layers"]] == [
        ("fc1", 0.3),
        ("fc1", 0.9),
        ("fc2", 0.3),
        ("fc2", 0.9),
    ]
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / "cache.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4 + 8
    text = run("analyze", "dense.pt", *DATA, *options, *kept, "--force", cwd=folder).stdout.decode()
    assert (
        "Drops of accuracy in percentage points, positive where it gets worse; tuned: after 4 steps, over 2 seeds."
        in text
    )
    assert (tmp_path / "cache.jsonl").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--sensitivity",), 2, "`--sensitivity` goes with `--data SPEC`, which is missing"),
        (("--data", "data.npz"), 2, "`--data` is what a network is measured on: give `--model PKG.MOD:NET`"),
        ((*DATA, "--runs", "3"), 2, "`--runs` goes with `--sensitivity`"),
        ((*DATA, "--cache", "c.jsonl"), 2, "`--cache` goes with `--sensitivity`"),
        (("--val", "data.npz"), 2, "`--val` goes with `--data SPEC`"),
        ((*DATA, "--metric", "r2"), 2, "`--metric r2` is for regression"),
        ((*DATA, "--val-fraction", "0"), 2, "has no validation set"),
        ((*DATA, "--sensitivity", "--runs", "3"), 2, "without `--finetune-steps` nothing is random"),
        ((*DATA, "--sensitivity", "--cache", "data.npz"), 1, "`data.npz`: `line 1` is no result of lrzip"),
        (
            ("--model", "tests.support.tasks:Classifier", "--data", "narrow.npz"),
            1,
            "does not take the inputs of `narrow.npz`",
        ),
        (
            ("--model", "tests.support.tasks:Classifier", "--data", "unlabelled.npz"),
            1,
            "has no labels, so nothing can be",
        ),
        (("--model", "tests.support.tasks:Regressor", "--data", "data.npz"), 1, "does not fit the model"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], code: int, message: str, folder: Path) -> None:
    assert message in error_of(run("analyze", "dense.pt", *options, cwd=folder), code)


def test_sensitivities_take_every_decomposition(folder: Path, tmp_path: Path) -> None:
    write_trained(tmp_path, TwoConvolutions)
    options = ("--sensitivity", "--energy", "0.9", "--decomposition", "tucker", "--model")
    network = (tmp_path / "dense.pt", "--data", "data.npz", *options, "tests.support.tasks:TwoConvolutions")
    document = json.loads(run("analyze", *network, "--json", cwd=folder).stdout)
    jsonschema.validate(document, ANALYZE)
    ranks = {item["name"]: item["rank"] for item in document["sensitivity"]["layers"]}
    assert [len(ranks[name]) for name in ("conv1", "conv2")] == [2, 2]
    assert isinstance(ranks["fc"], int)
    wrong = ("analyze", "dense.pt", *DATA, "--sensitivity", "--decomposition", "pc")
    assert "`--decomposition` must be one of svd, tucker" in error_of(run(*wrong, cwd=folder), 2)
