"""`lrzip compress --max-drop`."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch

from tests.support.schemas import BOUNDED
from tests.support.shell import error_of, run
from tests.support.tasks import Deep, TwoConvolutions, classes, write_data, write_trained

DATA = ("--model", "tests.support.tasks:Deep", "--data", "data.npz")
FAST = (*DATA, "--max-drop", "10", "--epochs", "1", "--batch-size", "32", "--lr", "0.01")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    write_trained(path, Deep)
    write_data(path / "data.npz", *classes())
    x, y = classes()
    write_data(path / "parts.npz", train_x=x, train_y=y, test_x=x[:50], test_y=y[:50])
    write_data(path / "test.npz", test_x=x[:50], test_y=y[:50])
    write_data(path / "narrow.npz", x[:, :5], y)
    return path


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_json_is_one_document_and_the_log_has_a_line_for_each_network(folder: Path) -> None:
    files = ("--log", "log.jsonl", "--plot", "front.svg", "--save-plan", "plan.json")
    done = run("compress", "dense.pt", *FAST, *files, "--test", "test.npz", "--json", cwd=folder)
    assert done.stderr == b""
    document = json.loads(done.stdout)
    jsonschema.validate(document, BOUNDED)
    search = document["search"]
    assert document["output"] == "dense.lrzip.pt"
    assert document["totals"]["parameters_after"] < document["totals"]["parameters_before"]
    assert search["before"]["accuracy"] - search["after"]["accuracy"] <= 0.1 + 1e-6
    assert search["test"]["after"]["accuracy"] > 0.8
    assert len((folder / "log.jsonl").read_text().splitlines()) >= 1 + len(search["tried"])
    assert b"<svg" in (folder / "front.svg").read_bytes()
    plan = json.loads((folder / "plan.json").read_text())
    smallest = min((one for one in search["tried"] if one["within"]), key=lambda one: one["parameters"])
    assert {layer["name"]: layer["ranks"][0] for layer in plan["layers"]} == smallest["ranks"]


def test_the_table_lists_the_trials_and_the_result(folder: Path) -> None:
    done = run("compress", "dense.pt", *FAST, "--strategy", "adaptive", cwd=folder)
    text = done.stdout.decode()
    assert "layer fc3, rank" in text
    assert re.search(
        r"validation samples, known to ± \d\.\d\d percentage points \(10 percentage points .* strategy adaptive\)", text
    )
    assert "Wrote dense.lrzip.pt in" in text
    assert done.stderr == b""
    quiet = run("compress", "dense.pt", *FAST, "-o", "q.pt", "--quiet", cwd=folder)
    assert quiet.stderr == b""
    assert b"Wrote q.pt in" in quiet.stdout


def test_checkpoints_are_read_from_and_written_to_pipes(folder: Path) -> None:
    done = run("compress", *FAST, stdin=(folder / "dense.pt").read_bytes(), cwd=folder)
    assert done.stdout[:2] == b"PK"
    (folder / "piped.pt").write_bytes(done.stdout)
    assert any(name.endswith(".0.weight") for name in torch.load(folder / "piped.pt")["state_dict"])


def test_a_gate_that_fails_is_3_and_the_output_is_there(folder: Path) -> None:
    done = run("compress", "dense.pt", *FAST, "--min-ratio", "1000", cwd=folder)
    assert done.returncode == 3
    assert b"Gate failed: the result is" in done.stderr
    assert (folder / "dense.lrzip.pt").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--max-drop", "1"), 2, "`--max-drop` needs `--model PKG.MOD:NET`"),
        (("--max-drop", "1", "--model", "tests.support.tasks:Deep"), 2, "`--max-drop` needs `--data SPEC`"),
        ((*DATA, "--energy", "0.9"), 2, "`--data` goes with `--max-drop D`, or with several budgets"),
        (("--energy", "0.9", "--lr", "1e-3"), 2, "`--lr` goes with `--max-drop D`, which is missing"),
        (("--energy", "0.9", "--resume"), 2, "`--resume` goes with `--max-drop D`, which is missing"),
        ((*FAST, "--energy", "0.9"), 2, "decides on all ranks itself, so it goes without `--energy`"),
        ((*FAST, "--dry-run"), 2, "so it goes without `--dry-run`"),
        ((*DATA, "--max-drop", "-1"), 2, "`--max-drop` takes a number from 0 on, got -1"),
        ((*FAST, "--strategy", "best"), 2, "`--strategy` takes global"),
        ((*FAST, "--resume"), 2, "`--resume` continues the search of a log"),
        ((*FAST, "--metric", "rmse"), 2, "`--metric rmse` is for regression"),
        ((*FAST, "--metric", "top5"), 2, "`--metric top5` is always 1 for 4 classes"),
        ((*FAST, "--objective", "none"), 1, "Unknown objective `none`"),
        ((*FAST, "--svd", "none"), 2, "`--svd` must be one of"),
        ((*FAST, "--plot", "p.txt"), 2, "`--plot` takes a .png"),
        ((*FAST, "--test", "parts.npz:val"), 1, "there is no part `val`"),
        (("--model", "tests.support.tasks:Deep", "--data", "test.npz", "--max-drop", "1"), 2, "is test data"),
        (
            ("--model", "tests.support.tasks:Deep", "--data", "narrow.npz", "--max-drop", "1"),
            1,
            "does not take the inputs",
        ),
        (
            ("--model", "tests.support.tasks:Regressor", "--data", "data.npz", "--max-drop", "1"),
            1,
            "does not fit the model",
        ),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], code: int, message: str, folder: Path) -> None:
    assert message in error_of(run("compress", "dense.pt", *options, cwd=folder), code)
    assert not (folder / "dense.lrzip.pt").exists()


def test_the_search_takes_every_decomposition(folder: Path) -> None:
    network = ("--model", "tests.support.tasks:TwoConvolutions", "--data", "data.npz", "--decomposition", "tucker")
    write_trained(folder, TwoConvolutions)
    bound = ("--max-drop", "40", "--epochs", "1", "--batch-size", "32", "--lr", "0.01", "--save-plan", "plan.json")
    document = json.loads(run("compress", "dense.pt", *network, *bound, "--json", cwd=folder).stdout)
    jsonschema.validate(document, BOUNDED)
    planned = {layer["name"]: layer for layer in json.loads((folder / "plan.json").read_text())["layers"]}
    assert planned["conv2"]["decomposition"] == "tucker"
    smallest = min((one for one in document["search"]["tried"] if one["within"]), key=lambda one: one["parameters"])
    assert smallest["ranks"]["conv2"] == planned["conv2"]["ranks"]
    assert len(planned["conv2"]["ranks"]) == 2
