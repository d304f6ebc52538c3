"""ONNX on the command line: files, pipes and what is printed."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np

from tests.support.graphs import conv, feeds, save, shared
from tests.support.graphs import run as run_model
from tests.support.schemas import ANALYZE, COMPRESS
from tests.support.shell import error_of, run


def test_a_model_goes_through_a_pipe(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    assert run("compress", path, "--rank", "2", "-o", tmp_path / "b.onnx").returncode == 0
    piped = run("compress", "--rank", "2", stdin=path.read_bytes())
    dashed = run("compress", path, "--rank", "2", "-o", "-")
    assert piped.stdout == dashed.stdout == (tmp_path / "b.onnx").read_bytes()
    analyzed = json.loads(run("analyze", "--json", stdin=piped.stdout).stdout)
    jsonschema.validate(analyzed, ANALYZE)
    assert [row["name"] for row in analyzed["layers"]] == [f"{n}.{i}" for n in ("kernel", "matrix") for i in range(2)]


def test_external_data_does_not_go_through_a_pipe(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx", data="a.onnx.data")
    assert "external data cannot go to standard output" in error_of(run("compress", path, "--rank", "2", "-o", "-"), 1)
    missing = error_of(run("compress", "--rank", "2", stdin=path.read_bytes()), 1)
    assert "`standard input` says that `kernel` is in 'a.onnx.data', which does not exist" in missing


def test_the_difference_of_outputs_is_printed(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    text = run("compress", path, "--rank", "2").stdout.decode()
    assert "`y`, on random inputs" in text
    done = run("compress", path, "--energy", "1.0", "--force-factorize", "--force", "--json")
    document = json.loads(done.stdout)
    jsonschema.validate(document, COMPRESS)
    assert document["differences"][0]["relative"] < 1e-5
    assert document["not_compared"] is None
    assert document["totals"]["layers_factorized"] == 2
    inputs = feeds(path)
    before, after = (run_model(file, inputs)["y"] for file in (path, tmp_path / "a.lrzip.onnx"))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * float(np.abs(before).max()))


def test_outputs_that_were_not_compared_are_reported(tmp_path: Path) -> None:
    built = conv((24, 16, 3, 3), (9, 9))
    built.graph.node[0].domain = "ai.onnx"
    built.graph.node.add(op_type="Mine", domain="mine", input=["y"], output=["z"])
    built.opset_import.add(domain="mine", version=1)
    done = run("compress", save(built, tmp_path / "a.onnx"), "--rank", "4")
    assert done.returncode == 0
    assert b"Outputs were not compared: the model does not run in onnxruntime" in done.stdout
    assert done.stderr == b""


def test_options_that_fit_no_program_are_refused(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    assert "must end in .onnx" in error_of(run("compress", path, "--rank", "2", "-o", tmp_path / "b.pt"), 2)
    assert "`--key state_dict` names nothing" in error_of(run("analyze", path, "--key", "state_dict"), 1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_help_needs_no_onnx() -> None:
    code = (
        "import sys; sys.argv = ['lrzip', 'compress', '--help']; from lrzip.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'onnx', 'onnx_ir', 'onnxruntime', 'torch'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"8 for" in done.stdout


def test_other_formats_are_read_without_onnx(tmp_path: Path) -> None:
    code = (
        "import sys, torch, lrzip\n"
        f"torch.save({{'fc.weight': torch.rand(16, 16)}}, {str(tmp_path / 'a.pt')!r})\n"
        f"lrzip.compress({str(tmp_path / 'a.pt')!r}, rank=2)\n"
        "assert not {'onnx', 'onnx_ir', 'onnxruntime'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_model_meets_a_budget(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    done = run("compress", path, "--budget", "params=60%", "--round-to", "1", "--json")
    document = json.loads(done.stdout)
    jsonschema.validate(document, COMPRESS)
    totals = document["totals"]
    assert totals["parameters_after"] == totals["budget"]["used"] <= totals["budget"]["limit"]
    assert totals["layers_factorized"]
    assert document["differences"]
