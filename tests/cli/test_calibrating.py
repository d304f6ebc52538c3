"""`lrzip compress --calibrate`, and curves that are measured on data."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from tests.support.checkpoints import huggingface
from tests.support.graphs import conv, feeds, save
from tests.support.networks import seeded
from tests.support.schemas import COMPRESS, CURVE
from tests.support.shell import error_of, run
from tests.support.tasks import Classifier, classes, write_data, write_trained

MODEL = ("--model", "tests.support.tasks:Classifier")
BUDGET = ("--budget", "params=60%")
CALIBRATE = ("--calibrate", "x.npz")
CURVES = ("--budget", "params=50%,80%", "--dry-run")
DATA = ("--data", "data.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrating")
    write_trained(path)
    x, y = classes()
    write_data(path / "data.npz", x, y)
    write_data(path / "x.npz", x[:200])
    write_data(path / "few.npz", x[:6])
    write_data(path / "narrow.npz", x[:, :5])
    write_data(path / "whole.npz", torch.ones(40, 12, dtype=torch.int64))
    write_data(path / "nan.npz", torch.where(torch.arange(12) == 3, torch.nan, x[:50]))
    write_data(path / "labels.npz", y=y)
    np.savez(path / "complex.npz", x=np.ones((20, 12), np.complex64))
    huggingface(path)
    torch.save(seeded(Classifier), path / "module.pt")
    program = torch.export.export(seeded(Classifier), (x[:128],))
    torch.export.save(program, path / "program.pt2")
    assert run("compress", "dense.pt", *BUDGET, *MODEL, *CALIBRATE, *kept(path), "-o", "a.pt", cwd=path).returncode == 0
    return path


def kept(folder: Path) -> tuple[str, ...]:
    return ("--correct", "none", "--save-statistics", str(folder / "seen.safetensors"))


def test_the_json_document_describes_the_calibration(folder: Path, tmp_path: Path) -> None:
    done = run("compress", "dense.pt", *BUDGET, *MODEL, *CALIBRATE, "--json", "-o", tmp_path / "a.pt", cwd=folder)
    assert done.stderr == b""
    document = json.loads(done.stdout)
    jsonschema.validate(document, COMPRESS)
    assert document["calibration"] == {
        "examples": "x.npz",
        "count": 128,  # batches of one size
        "corrections": "bias,sequential,residual,refit,response",
        "remarks": [],
        "changed": ["fc1.bias", "fc2.weight", "fc2.bias"],
        "scarce": [],
    }
    assert [0 < row["output_error"] < row["error"] for row in document["layers"]] == [True]


def test_layers_with_too_few_samples_are_listed(folder: Path, tmp_path: Path) -> None:
    few = ("compress", "dense.pt", *BUDGET, *MODEL, "--calibrate", "few.npz", "-o", tmp_path / "a.pt", "--force")
    document = json.loads(run(*few, "--json", cwd=folder).stdout)
    jsonschema.validate(document, COMPRESS)
    assert document["calibration"]["scarce"] == [
        {"name": "fc1", "positions": 6, "columns": 12},
        {"name": "fc2", "positions": 6, "columns": 32},
    ]
    text = run(*few, cwd=folder).stdout.decode().splitlines()
    (line,) = [line for line in text if line.startswith("Few samples for 2 layers")]
    assert line.endswith("`fc1` has 6 spatial positions and 12 columns")


def test_reconstruction_ends_the_chain(folder: Path, tmp_path: Path) -> None:
    options = (*BUDGET, *MODEL, *CALIBRATE, "--reconstruct", "3", "--json", "-o", tmp_path / "a.pt")
    document = json.loads(run("compress", "dense.pt", *options, cwd=folder).stdout)
    jsonschema.validate(document, COMPRESS)
    assert [row["method"].endswith(", trained") for row in document["layers"]] == [True]
    assert all("output_error" not in row for row in document["layers"])
    assert {"bn.weight", "bn.bias"} <= set(document["calibration"]["changed"])


def test_stored_statistics_replace_calibration_data(folder: Path, tmp_path: Path) -> None:
    options = (*BUDGET, "--calibrate", "seen.safetensors", "-o", tmp_path / "b.pt", "--json")
    document = json.loads(run("compress", "dense.pt", *options, cwd=folder).stdout)
    jsonschema.validate(document, COMPRESS)
    assert document["calibration"]["examples"] == "seen.safetensors"
    assert (tmp_path / "b.pt").read_bytes() == (folder / "a.pt").read_bytes()


def test_statistics_are_overwritten_only_with_force(folder: Path, tmp_path: Path) -> None:
    again = ("compress", "dense.pt", *BUDGET, *MODEL, *CALIBRATE, *kept(tmp_path), "--dry-run")
    assert run(*again, cwd=folder).returncode == 0
    assert "seen.safetensors` exists. Pass `--force`" in error_of(run(*again, cwd=folder), 1)
    assert run(*again, "--force", cwd=folder).returncode == 0


def test_a_pipe_and_a_device_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    options = (*BUDGET, *MODEL, *CALIBRATE)
    run("compress", "dense.pt", *options, "--device", "cpu:0", "-o", tmp_path / "a.pt", cwd=folder)
    piped = run("compress", *options, stdin=(folder / "dense.pt").read_bytes(), cwd=folder)
    assert piped.stdout == (tmp_path / "a.pt").read_bytes()
    assert b"Calibrated on 128 samples of x.npz" in piped.stderr


@pytest.mark.parametrize("steps", ["0", "2"])
def test_a_module_brings_its_own_network(steps: str, folder: Path, tmp_path: Path) -> None:
    options = (*BUDGET, *CALIBRATE, "--reconstruct", steps, "--json")
    done = run("compress", "module.pt", *options, "--trust", "-o", tmp_path / "a.pt", cwd=folder)
    document = json.loads(done.stdout)
    jsonschema.validate(document, COMPRESS)
    assert "fc1.bias" in document["calibration"]["changed"]
    # The same as from its state_dict.
    torch.save(seeded(Classifier).state_dict(), tmp_path / "state.pt")
    run("compress", tmp_path / "state.pt", *options, *MODEL, "-o", tmp_path / "b.pt", cwd=folder)
    small = torch.load(tmp_path / "a.pt", weights_only=False).state_dict()
    other = torch.load(tmp_path / "b.pt", weights_only=True)
    assert small.keys() == other.keys()
    assert all(torch.equal(small[name], other[name]) for name in small)


def test_biases_of_programs_correct_means(folder: Path, tmp_path: Path) -> None:
    done = run(
        "compress", "program.pt2", *BUDGET, *CALIBRATE, "--trust", "--json", "-o", tmp_path / "a.pt2", cwd=folder
    )
    assert "fc1.bias" in json.loads(done.stdout)["calibration"]["changed"]
    run("compress", "module.pt", *BUDGET, *CALIBRATE, "--trust", "-o", tmp_path / "a.pt", cwd=folder)
    x = classes()[0][:128]
    small = torch.load(tmp_path / "a.pt", weights_only=False)(x)
    # Sums of some 30 products in float32, after fits to the same moments in float64.
    torch.testing.assert_close(torch.export.load(tmp_path / "a.pt2").module()(x), small, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [CALIBRATE, (), ("--calibrate", "seen.safetensors")], ids=["x", "none", "seen"])
def test_a_curve_measures_what_compress_writes(more: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    metrics = ("--metric", "tests.support.tasks:surprise:min", "--metric", "accuracy")
    done = run("compress", "dense.pt", *CURVES, *MODEL, *DATA, *metrics, *more, "--json", cwd=folder)
    assert done.stderr == b""
    document = json.loads(done.stdout)
    jsonschema.validate(document, CURVE)
    assert document["evaluation"]["val_examples"] == 40
    for amount, point in zip(("50%", "80%"), document["points"], strict=True):
        path = tmp_path / f"{amount}.pt"
        run("compress", "dense.pt", "--budget", f"params={amount}", *MODEL, *more, "-o", path, cwd=folder)
        analyzed = json.loads(run("analyze", path, *MODEL, *DATA, *metrics, "--json", cwd=folder).stdout)
        # Without moments, factors come from another run of the same solver: float32 sums of some 30 products.
        assert point["metrics"] == pytest.approx(analyzed["evaluation"]["metrics"], rel=1e-4)
    dense = json.loads(run("analyze", "dense.pt", *MODEL, *DATA, *metrics, "--json", cwd=folder).stdout)
    assert document["evaluation"] == dense["evaluation"]


def test_a_curve_is_drawn_and_tabled_with_its_metric(folder: Path, tmp_path: Path) -> None:
    before = sorted(folder.iterdir())
    pictures = [tmp_path / "plain.svg", tmp_path / "measured.svg"]
    run("compress", "dense.pt", *CURVES, "--plot", pictures[0], cwd=folder)
    macs = ("--budget", "macs=50%,80%", "--dry-run")
    text = run("compress", "dense.pt", *macs, *MODEL, *DATA, "--plot", pictures[1], cwd=folder).stdout.decode()
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][-2:] == ["MACs", "accuracy"]
    assert [row[-1] for row in rows[1:3]] == ["%", "%"]
    assert "Dense network: accuracy 100.00 % on 40 validation samples" in text
    # The dense network is a dashed line, in the picture with a metric only.
    assert ["stroke-dasharray" in picture.read_text() for picture in pictures] == [False, True]
    assert sorted(folder.iterdir()) == before


def test_a_module_is_measured_by_itself(folder: Path) -> None:
    done = run("compress", "module.pt", *CURVES, *CALIBRATE, *DATA, "--trust", "--json", cwd=folder)
    document = json.loads(done.stdout)
    jsonschema.validate(document, CURVE)
    assert all("accuracy" in point["metrics"] for point in document["points"])


BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "budget-too-small": ((*MODEL, *CALIBRATE, "--budget", "params=1%"), 1, "Give at least params="),
    "budget-above-all": ((*MODEL, *CALIBRATE, "--budget", "params=120%"), 2, "Give at most 100%"),
    "mixed-units": ((*CALIBRATE, "--budget", "params=40%,macs=50%", "--dry-run"), 2, "mixes units"),
    "shape": ((*BUDGET, *MODEL, "--calibrate", "narrow.npz"), 1, "does not take the inputs of `narrow.npz`, float32"),
    "dtype": ((*BUDGET, *MODEL, "--calibrate", "whole.npz"), 1, "does not take the inputs of `whole.npz`, int64 (12,)"),
    "complex": ((*BUDGET, *MODEL, "--calibrate", "complex.npz"), 1, "`complex.npz`: `x` is complex"),
    "nan": ((*BUDGET, *MODEL, "--calibrate", "nan.npz"), 1, "`nan.npz`: `x` has NaN or infinite values"),
    "labels": ((*BUDGET, *MODEL, "--calibrate", "labels.npz"), 1, "`labels.npz` has no array `x`"),
    "missing": ((*BUDGET, *MODEL, "--calibrate", "no.npz"), 1, "`--calibrate no.npz` does not exist"),
    "weights-alone": ((*BUDGET, *CALIBRATE), 2, "holds only weights. Give `--model PKG.MOD:NET`"),
    "memory": ((*BUDGET, *MODEL, *CALIBRATE, "--calibration-memory", "banana"), 2, "takes a size such as 500MB"),
    "no-memory": ((*BUDGET, *MODEL, *CALIBRATE, "--calibration-memory", "0"), 2, "memory of a calibration must be at"),
    "memory-alone": ((*BUDGET, "--calibration-memory", "1MB"), 2, "goes with `--calibrate SPEC`, which is missing"),
    "correct": ((*BUDGET, *MODEL, *CALIBRATE, "--correct", "all"), 2, "`--correct` takes none, or some of"),
    "statistics-corrected": ((*BUDGET, "--calibrate", "seen.safetensors", "--correct", "bias"), 2, "nothing to run"),
    "suffix": ((*BUDGET, *MODEL, *CALIBRATE, "--save-statistics", "s.npz"), 2, "takes a .safetensors file"),
    "device": ((*BUDGET, *MODEL, *CALIBRATE, "--device", "meta"), 2, "The device `meta` cannot be used"),
    "augment": ((*BUDGET, *MODEL, *CALIBRATE, "--augment", "flip"), 2, "goes with `--reconstruct`"),
    "data-for-one-plan": ((*BUDGET, *MODEL, *DATA), 2, "`--data` goes with `--max-drop D`, or with several budgets"),
    "metric-alone": ((*CURVES, *MODEL, "--metric", "accuracy"), 2, "`--metric` goes with `--data SPEC`"),
    "curve-without-network": ((*CURVES, *DATA), 2, "`--data` is what a network is measured on: give `--model"),
    "curve-without-labels": ((*CURVES, *MODEL, "--data", "x.npz"), 1, "`x.npz` has no labels"),
    "curve-with-test": ((*CURVES, *MODEL, *DATA, "--test", "data.npz"), 2, "`--test` goes with `--max-drop D`"),
}


@pytest.mark.parametrize(("options", "code", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(options: tuple[str, ...], code: int, message: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    assert message in error_of(run("compress", "dense.pt", *options, cwd=folder), code)
    assert sorted(folder.iterdir()) == before


OTHER_FILES: dict[str, tuple[str, tuple[str, ...], int, str]] = {
    "transformers": ("huggingface", CALIBRATE, 2, "`huggingface` holds only weights"),
    "untrusted-module": ("module.pt", CALIBRATE, 1, "Pass `--trust` if you know where it came from"),
    "untrusted-program": ("program.pt2", CALIBRATE, 1, "Pass `--trust` if you know its origin"),
    "another-network": ("huggingface", ("--calibrate", "seen.safetensors"), 1, "is of another network: `fc1` has"),
}


@pytest.mark.parametrize(("file", "options", "code", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files_are_one_line_too(
    file: str, options: tuple[str, ...], code: int, message: str, folder: Path
) -> None:
    assert message in error_of(run("compress", file, *BUDGET, *options, "-o", "out.bin", cwd=folder), code)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--correct", "bias"), "`--correct` is for networks (`--model PKG.MOD:NET`) and `.pt2` programs"),
        (("--reconstruct", "3"), "`--reconstruct` trains a network, so it needs `--model PKG.MOD:NET`"),
    ],
)
def test_corrections_that_onnx_does_not_support_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = save(conv((24, 16, 3, 3), (9, 9)), tmp_path / "a.onnx")
    (inputs,) = feeds(path).values()
    np.savez(tmp_path / "x.npz", x=np.repeat(inputs[:1], 4, 0))
    given = ("compress", path, *BUDGET, "--calibrate", tmp_path / "x.npz")
    assert message in error_of(run(*given, *options), 2)
    assert run(*given).returncode == 0
