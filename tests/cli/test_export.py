import json
from pathlib import Path

import jsonschema
import pytest
import torch

import lrzip
from tests.support.checkpoints import nested, safetensors
from tests.support.schemas import EXPORT
from tests.support.shell import error_of, run


def test_json_follows_the_schema(tmp_path: Path) -> None:
    run("compress", nested(tmp_path), "--ratio", "2", "-o", tmp_path / "small.ckpt")
    for to in ("safetensors", "state-dict", "dense"):
        done = run("export", tmp_path / "small.ckpt", "--to", to, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        jsonschema.validate(document, EXPORT)
        assert Path(document["output"]).exists()
        assert bool(document["multiplied"]) == (to == "dense")


def test_exports_go_through_pipes(tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    small = run("compress", "--ratio", "2", stdin=path.read_bytes()).stdout
    done = run("export", "--to", "dense", stdin=small)
    assert b"layers merged" in done.stderr
    totals = [
        json.loads(run("analyze", "--json", stdin=data).stdout)["totals"] for data in (done.stdout, path.read_bytes())
    ]
    assert totals[0]["parameters"] == totals[1]["parameters"]


def test_wrong_usage(tmp_path: Path) -> None:
    path = nested(tmp_path)
    assert "--to" in error_of(run("export", path), 2)
    assert "`--to` must be one of safetensors, state-dict, dense, onnx, pt2, got tflite" in error_of(
        run("export", path, "--to", "tflite"), 2
    )
    assert "no factorized layers" in error_of(run("export", path, "--to", "dense"), 1)
    (tmp_path / "nested.safetensors").touch()
    assert "Pass `--force`" in error_of(run("export", path, "--to", "safetensors"), 1)


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_programs_are_written_by_one_command(to: str, tmp_path: Path) -> None:
    (tmp_path / "nets_of_export.py").write_text(
        "from tests.support.networks import Net, seeded\nmake = lambda: seeded(Net)\n"
    )
    nested(tmp_path)
    lrzip.compress(tmp_path / "nested.ckpt", tmp_path / "small.pt", ratio=2, only=["conv*", "fc*"])
    state = torch.load(tmp_path / "small.pt")["state_dict"]
    torch.save({k: v for k, v in state.items() if "extra" not in k}, tmp_path / "small.pt")
    options = ["--model", "nets_of_export:make", "--input-shape", "1,3,16,16", "--to", to, "-o", f"net.{to}"]
    done = run("export", "small.pt", *options, "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    jsonschema.validate(document, EXPORT)
    assert done.stderr == b""
    assert document["fixed"] == []
    assert document["differences"][0]["relative"] < 1e-5
    again = run("export", "small.pt", *options, "--force", cwd=tmp_path)
    assert "Compared with the network: outputs differ by at most" in again.stdout.decode()
    piped = run("export", "small.pt", *options[:-1], "-", cwd=tmp_path)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout[:2] == (b"PK" if to == "pt2" else b"\x08\x0a")
